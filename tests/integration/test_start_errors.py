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
