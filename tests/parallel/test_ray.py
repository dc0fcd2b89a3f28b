# SPDX-License-Identifier: Apache-2.0
"""The configuration as Ray pickles it for a worker of the Ray executor, which vLLM does not run on CPUs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.generation import TREE
from tests.parallel.engines import OPTIONS

# A worker imports nothing of this package before its actor's arguments arrive.
WORKER = """
import pickle, sys
config = pickle.load(open(sys.argv[1], "rb"))
from vllm.v1.worker.gpu import model_runner
print(config.speculative_config, hasattr(model_runner.init_speculator, "_redrafter_original"))
"""


@pytest.mark.process
def test_the_configuration_prepares_a_worker_of_the_ray_executor(tmp_path: Path) -> None:
    from ray import cloudpickle
    from vllm import EngineArgs

    config = EngineArgs(**OPTIONS, tensor_parallel_size=2, speculative_config=TREE).create_engine_config()
    path = tmp_path / "config"
    path.write_bytes(cloudpickle.dumps(config))
    worker = subprocess.run([sys.executable, "-c", WORKER, str(path)], capture_output=True, text=True, check=False)
    assert worker.returncode == 0, worker.stderr
    assert worker.stdout.splitlines()[-1] == f"{config.speculative_config!r} True"
