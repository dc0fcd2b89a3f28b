# SPDX-License-Identifier: Apache-2.0
"""An error of ours in the worker of a real engine is the front end's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from redrafter_vllm.integration import start_errors
from tests.models import save_random_drafter, save_random_llama

BUILD = """
import sys
from vllm import LLM

if __name__ == "__main__":
    options = dict(dtype="float32", max_model_len=64, kv_cache_memory_bytes=1 << 26, gpu_memory_utilization=0.1)
    try:
        method = {"method": "redrafter"}
        LLM(sys.argv[1], speculative_config=method, enforce_eager=True, skip_tokenizer_init=True, **options)
    except Exception as error:
        print("caught:", type(error).__name__, error)
"""


@pytest.mark.engine
def test_an_engine_in_separate_processes(tmp_path: Path) -> None:
    """NaN weights are found where the tensors are read: in the worker, two processes away from the caller."""
    target = save_random_llama(tmp_path / "target")
    drafter = save_random_drafter(target / "redrafter")
    spoil(drafter / "model.safetensors")
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, str(script), str(target)], env=environment, capture_output=True, text=True, check=False
    )
    caught = [line for line in ended.stdout.splitlines() if line.startswith("caught:")]
    assert caught and "holds NaN or infinite values" in caught[0], ended.stderr[-2000:]
    # With patch 02 of docs/design/upstream, which replaces our means, the front end's error is one of vLLM's own.
    kind = "NonFiniteTensorError" if hasattr(start_errors, "raise_start_error") else "RuntimeError"
    assert caught[0].split()[1] == kind


def spoil(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
