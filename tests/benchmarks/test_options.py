# SPDX-License-Identifier: Apache-2.0
"""The demonstration's options, its server command, and its kinds of engines."""

from pathlib import Path

import pytest

from benchmarks.demo.options import parse_args
from benchmarks.demo.serve import free_port, serve_command
from benchmarks.engines.offline import as_users_run_it, parse_result


def test_defaults_are_the_documented_drafting() -> None:
    options = parse_args([])
    assert (options.drafting.beam_width, options.drafting.beam_length) == (4, 4)
    assert options.drafting.num_speculative_tokens == 16
    assert options.out.is_absolute()


@pytest.mark.parametrize(
    "argv",
    [
        ["--prompts", "0"],
        ["--max-tokens", "4000"],
        ["--temperature", "0"],
        ["--target", "/nowhere"],
        ["--beam-width", "0"],
        ["--nodes", "300"],
    ],
)
def test_impossible_options_end_with_a_message(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_server_command_uses_the_word_redrafter() -> None:
    command = serve_command(Path("models/target"), 1234)
    assert Path(command[0]).name == "vllm"
    assert command[1:5] == ["serve", "models/target", "--speculative-model", "redrafter"]
    assert command[command.index("--port") + 1] == "1234"
    assert "--enforce-eager" in command
    assert "True" not in command


def test_free_port_is_valid() -> None:
    assert 1024 < free_port() < 65536


def test_the_baseline_loads_no_plugin() -> None:
    assert as_users_run_it(True).env == {"VLLM_PLUGINS": ""}
    assert as_users_run_it(False).env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert as_users_run_it(False).env["TRITON_INTERPRET"] == "0"


def test_parsing_an_engine_result() -> None:
    run = {
        "tokens": [[1, 2]],
        "steps": [[1, 1]],
        "seconds": 0.5,
        "counters": {"verifications": 0, "accepted_at_least": []},
    }
    result = parse_result({"runner": "V2", "start_seconds": 1.0, "greedy": run, "seeded": run})
    assert result.greedy.tokens_per_second == 4.0
    assert result.seeded.counters.verifications == 0
