# SPDX-License-Identifier: Apache-2.0
"""The demonstration's options, its server command, and its kinds of engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.demo.options import parse_args
from benchmarks.demo.serve import serve_command
from benchmarks.engines.offline import parse_result
from redrafter_vllm.bench.kinds import as_users_run_it
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.utils.local_server import free_port
from tests.paths import ASSET, ROOT


def test_defaults() -> None:
    options = parse_args([])
    assert options.drafting == DraftingConfig()  # serving's own
    assert options.train is None
    assert options.inflated
    assert options.out.is_absolute()


def test_training_is_short_unless_asked() -> None:
    assert parse_args(["--train"]).train == "short"
    assert parse_args(["--train", "long", "--no-inflated"]).train == "long"
    assert not parse_args(["--no-inflated"]).inflated


@pytest.mark.parametrize(
    "argv",
    [
        ["--prompts", "0"],
        ["--max-tokens", "4000"],
        ["--temperature", "0"],
        ["--rounds", "0"],
        ["--target", "/nowhere"],
        ["--beam-width", "0"],
        ["--nodes", "300"],
        ["--train", "--target", str(ASSET)],
        ["--train", "--drafter", str(ASSET / "redrafter")],
    ],
)
def test_impossible_options_end_with_a_message(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.process
def test_the_help_needs_no_heavy_import() -> None:
    code = "import sys, benchmarks.demo.__main__; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_server_command() -> None:
    speculative = parse_args(["--nodes", "5"]).speculative(Path("drafters/one"), adaptive=False)
    command = serve_command(Path("models/target"), speculative, 1234)
    assert Path(command[0]).name == "vllm"
    assert command[1:4] == ["serve", "models/target", "--speculative-config"]
    assert json.loads(command[4]) == {
        "method": "redrafter",
        "model": "drafters/one",
        "beam_width": 4,
        "beam_length": 4,
        "num_speculative_tokens": 5,
        "adaptive": False,
    }
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
