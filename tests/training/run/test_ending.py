# SPDX-License-Identifier: Apache-2.0
"""Trainings that end early, and how the next start continues them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from redrafter_training.__main__ import main
from redrafter_training.distributed import checkpoints
from redrafter_training.run.evaluation import held_out_figures
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.state import read_state
from redrafter_training.utils.command import Interruption
from redrafter_training.utils.folder_lock import FolderInUseError
from redrafter_training.utils.run_folder import held
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from tests.paths import ROOT
from tests.training.small_command import ASSET, copy_target, small_command, tree, write_data

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def wait_for(there: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not there() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_with_a_checkpoint_and_a_message(number: signal.Signals, tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data.json"), tmp_path / "out"
    arguments = small_command(ASSET, data, out, "--max-steps", "100000", "--checkpoint-every", "0")
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "redrafter_training", *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=output,
            stderr=output,
        )
        # TensorBoard's file is opened just before the first step.
        wait_for(lambda: any((tmp_path / "out.run" / "logs").glob("*")), process)
        time.sleep(1)
        process.send_signal(number)
        code = process.wait(timeout=240)
    shown = (tmp_path / "output").read_text()
    assert code == 130, shown
    assert "Traceback" not in shown
    newest = checkpoints.latest(tmp_path / "out.run" / "checkpoints")
    assert newest is not None, shown
    assert shown.splitlines()[-1] == f"interrupted: the same command continues from the last checkpoint, {newest}"
    assert read_state(newest)["step"] == int(newest.name.removeprefix("step-")) >= 1
    assert not out.exists()


def test_the_second_signal_ends_the_process_at_once() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        with Interruption() as interruption, interruption.postponed():
            signal.raise_signal(number)
            assert interruption.requested
            assert {signal.getsignal(other) for other in before} == {signal.SIG_DFL}
        with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "budget"),
    [
        (1, "--max-steps 6"),
        (3, "--max-steps 6"),
        (6, "--max-steps 6"),
        (3, "--epochs 1 --micro-batch-size 1 --patience 9"),
    ],
)
def test_an_interrupted_training_continues_to_the_same_result(
    step: int,
    budget: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also after the last step, before its evaluation."""
    data = write_data(tmp_path / "data.json")
    more = (*budget.split(), "--evaluate-every", "3", "--checkpoint-every", "0")
    from redrafter_training.trainer import loop

    accumulate, made = loop.accumulate_gradients, 0

    def signalled(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made == step:
            signal.raise_signal(signal.SIGINT)
        return accumulate(*arguments)

    monkeypatch.setattr(loop, "accumulate_gradients", signalled)
    assert main(small_command(ASSET, data, tmp_path / "cut", *more)) == 130
    assert f"step-{step:08d}" in capsys.readouterr().err
    for name in ("cut", "whole"):
        assert main(small_command(ASSET, data, tmp_path / name, *more)) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]
    reports = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("cut", "whole")]
    # Eleven conversations are trained on, each fills a row, and a step has two rows.
    assert [report["steps"] for report in reports] == [6, 6]
    assert [report["epochs"] for report in reports] == [6 / 5.5, 6 / 5.5]
    assert ["best_step" in report for report in reports] == ["--patience" in budget] * 2
    assert reports[0]["metrics"] == reports[1]["metrics"] != {}
    assert reports[0]["training"] == reports[1]["training"]


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("redrafter_training.hidden_states.store.save_file", ["--hidden-cache", "states"]),
        ("redrafter_training.run.feed.torch.save", ["--response-fraction", "0.5", "--responses.count", "2"]),
        ("redrafter_training.target.loading.check_fits", []),
    ],
)
def test_a_signal_before_the_first_step_leaves_no_partial_files(
    place: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "data.json")
    command = small_command(ASSET, data, tmp_path / "out", "--max-steps", "1", "--responses.max-prompt", "32", *more)

    def interrupted(*arguments: Any, **named: Any) -> None:
        for argument in arguments:
            if isinstance(argument, Path):
                argument.write_bytes(b"half")
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted before the first checkpoint")
    assert not list(tmp_path.rglob("*.writing"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"half"]
    assert main(command) == 0


@pytest.mark.process
def test_one_training_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path / "data.json"), tmp_path / "out"
    run = tmp_path / "out.run"
    with held(run):
        before = tree(tmp_path)
        assert main(small_command(ASSET, data, out, "--max-steps", "1")) == 1
        assert f"(process {os.getpid()} on {socket.gethostname()})" in capsys.readouterr().err
        assert tree(tmp_path) == before
    # A holder that is killed holds nothing any more.
    script = (
        "import os, signal, sys; from pathlib import Path; from redrafter_training.utils.run_folder import held\n"
        "with held(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = [sys.executable, "-c", script, str(run)]
    assert subprocess.run(killed, cwd=ROOT, env=ENVIRONMENT, check=False).returncode == -signal.SIGKILL
    with held(run), pytest.raises(FolderInUseError), held(run):
        pass


@pytest.mark.slow
def test_a_refused_start_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, data, out = copy_target(tmp_path / "target"), write_data(tmp_path / "data.json"), tmp_path / "out"
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    command = small_command(target, data, out, "--max-steps", "2", "--chat-template", str(template))
    assert main(command) == 0
    before = {name: tree(tmp_path / name) for name in ("out", "out.run")}
    old = {
        path: path.read_bytes() for path in (data, template, target / "model.safetensors", target / "tokenizer.json")
    }

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert main([*command, *more]) == 1
        assert {name: tree(tmp_path / name) for name in before} == before
        return capsys.readouterr().err

    assert "config.seed: 0 -> 5" in refused("--seed", "5")
    write_data(data, "Another answer for {}.")
    assert "other contents of --data:" in refused()
    data.write_bytes(old[data])
    template.write_text(template.read_text() + " ")
    assert "other contents of --chat-template:" in refused()
    template.write_bytes(old[template])
    weights = bytearray(old[target / "model.safetensors"])
    weights[-2] ^= 1
    (target / "model.safetensors").write_bytes(weights)
    assert "other contents of --target (weights):" in refused()
    (target / "model.safetensors").write_bytes(old[target / "model.safetensors"])
    vocabulary = old[target / "tokenizer.json"].decode().rstrip()
    (target / "tokenizer.json").write_text(vocabulary + " ")
    assert "other contents of --target (tokenizer):" in refused()
    (target / "tokenizer.json").write_bytes(old[target / "tokenizer.json"])
    # The same contents elsewhere are the same, and the stored keys are still those of the run.
    assert main(["--config", str(tmp_path / "out.run" / "config.yaml")]) == 0
    moved = data.rename(tmp_path / "moved.json")
    assert main([*command, "--data", str(moved)]) == 0


@pytest.mark.slow
def test_the_drafter_is_exported_even_if_its_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = small_command(ASSET, write_data(tmp_path / "data.json"), out, "--max-steps", "1", "--evaluate", "true")

    def fail(*arguments: Any) -> None:
        assert Drafter.from_pretrained(out).config.exit_dim == 64
        raise IndexError("index out of range in self")

    with monkeypatch.context() as patched:
        patched.setattr("redrafter_training.run.evaluation.measure_each", fail)
        assert main(command) == 1
    assert (
        "is complete, but its tokens per step could not be measured (IndexError: index out of"
        in capsys.readouterr().err
    )
    assert json.loads((out / "training.json").read_text())["held_out"] == {}
    weights = (out / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert json.loads((out / "training.json").read_text())["held_out"]["4x2"]["tokens_per_step"] >= 1
    assert (out / "model.safetensors").read_bytes() == weights


def test_evaluated_texts_fit_the_targets_positions() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    target = TargetModel(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)))
    drafter = Drafter(DrafterConfig(vocab_size=20, hidden_size=8, exit_dim=16, num_draft_layers=1))
    prompts = [torch.full((length,), 3) for length in (5, 16, 17, 31)]
    figures = held_out_figures(target, drafter, prompts, 2).tokens_per_step
    # Two prompts leave room for half of the positions, of which a step emits all but the first.
    assert 2 <= figures["1x2"]["tokens"] <= 2 * 15
    # Where none leaves so much room, the ends of the prompts are taken.
    assert 1 <= held_out_figures(target, drafter, prompts[2:], 2).tokens_per_step["1x2"]["tokens"] <= 2 * 15
