# SPDX-License-Identifier: Apache-2.0
"""The engine of `redrafter chat --in-process`, without one: interrupts, and the sentence of an error."""

import os
import signal
from types import SimpleNamespace

import pytest

from redrafter_vllm.chat.own_engine import _step, start_failure
from redrafter_vllm.cli import chat

PYDANTIC = """1 validation error for RedrafterSpeculativeConfig
  Value error, no drafter was found for the target [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.12/v/value_error"""


def test_an_interrupt_lets_the_step_end() -> None:
    before, steps = signal.getsignal(signal.SIGINT), []

    def step() -> list[int]:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("ended")
        return []

    with pytest.raises(KeyboardInterrupt):
        _step(SimpleNamespace(step=step))
    assert steps == ["ended"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_step_without_an_interrupt() -> None:
    assert _step(SimpleNamespace(step=lambda: [1, 2])) == [1, 2]


def test_a_step_that_fails_gives_interrupts_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        _step(SimpleNamespace(step=lambda: 1 // 0))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError(PYDANTIC), "no drafter was found for the target"),
        (ValueError("too long\nand more"), "too long"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_sentence_of_an_error(error: Exception, sentence: str) -> None:
    assert start_failure(error) == sentence


def test_a_running_server_has_its_own_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        chat.main(["--url", "http://localhost:1", "--in-process"])
    assert "--in-process cannot be had with --url" in capsys.readouterr().err
