# SPDX-License-Identifier: Apache-2.0
"""The supported range of vLLM, and the refusal of other versions."""

import subprocess
import sys

import pytest

from redrafter_vllm.integration.versions import UnsupportedVllmError, check_vllm_version


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.33.0", "0.33.4.post1", "0.32.0+cpu", "0.33.0+cpu.overlay"])
def test_known(version: str) -> None:
    check_vllm_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0", "0.34.0+cpu", "dev", ""])
def test_unknown(version: str) -> None:
    with pytest.raises(UnsupportedVllmError, match=r">=0.32,<0.34"):
        check_vllm_version(version)


SCRIPT = """
import vllm
vllm.__version__ = "0.99.0"
from redrafter_vllm.plugin import register
register(); register()
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
for argv in (["--speculative-model", "redrafter"], ["--speculative-config", '{"method": "redrafter"}'], []):
    engine_args = EngineArgs.from_cli_args(parser.parse_args(["--model", "m", *argv]))
    try:
        print("config:", engine_args.create_speculative_config(None, None))
    except RuntimeError as error:
        print("error:", error)
"""


@pytest.mark.process
def test_an_unknown_vllm_works_as_before_and_refuses_in_one_sentence() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith(("error:", "config:"))]
    assert len(lines) == 3 and lines[2] == "config: None"
    for line in lines[:2]:
        assert line.startswith("error: redrafter-vllm knows vLLM >=0.32,<0.34, but '0.99.0' is installed")
