# SPDX-License-Identifier: Apache-2.0
"""Errors in an engine's process, which the front end then raises."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.start_errors import expect_start_errors, raise_start_error, report_start_errors
from tests.models import save_random_drafter, save_random_llama

ENGINE_PROCESS = """
import sys
from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.start_errors import report_start_errors

@report_start_errors
def start():
    raise OptionError(sys.argv[1]) if sys.argv[1] else ValueError("of another package")

start()
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("REDRAFTER_START_ERROR", "")
    return tmp_path


def engine_process(message: str) -> None:
    ended = subprocess.run([sys.executable, "-c", ENGINE_PROCESS, message], capture_output=True, check=False)
    assert ended.returncode == 1


@raise_start_error
def wait(*messages: str) -> None:
    for message in messages:
        engine_process(message)
    raise RuntimeError("Engine core initialization failed. See root cause above.")


@pytest.mark.process
def test_the_first_cause_is_raised(scratch: Path) -> None:
    expect_start_errors()
    with pytest.raises(OptionError, match=r"^The first\.$") as error:
        wait("The first.", "The second.")
    assert isinstance(error.value.__cause__, RuntimeError)
    assert list(scratch.iterdir()) == []
    # The next engine's failure is not this one's.
    with pytest.raises(RuntimeError, match="See root cause above"):
        wait()


@pytest.mark.process
def test_errors_of_other_packages_are_not_replaced(scratch: Path) -> None:
    expect_start_errors()
    with pytest.raises(RuntimeError, match="See root cause above"):
        wait("")
    assert list(scratch.iterdir()) == []


def test_in_the_same_process_the_error_itself_arrives(scratch: Path) -> None:
    @report_start_errors
    def start() -> None:
        raise OptionError("Here.")

    expect_start_errors()
    assert os.environ["REDRAFTER_START_ERROR"].startswith(str(scratch))
    with pytest.raises(OptionError, match="Here"):
        start()
    assert list(scratch.iterdir()) == []


BUILD = """
import sys
from vllm import LLM
from redrafter_vllm.checkpoint.errors import NonFiniteTensorError

if __name__ == "__main__":
    options = dict(dtype="float32", max_model_len=64, kv_cache_memory_bytes=1 << 26, gpu_memory_utilization=0.1)
    try:
        method = {"method": "redrafter"}
        LLM(sys.argv[1], speculative_config=method, enforce_eager=True, skip_tokenizer_init=True, **options)
    except NonFiniteTensorError as error:
        print("caught:", error)
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


def spoil(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
