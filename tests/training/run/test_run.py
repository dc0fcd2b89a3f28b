# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training` from the outside: plan, training, a kill in the middle, the files of the run."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from redrafter_training.__main__ import main
from redrafter_training.config.recipe import Budget
from redrafter_training.data.python_corpus import load_corpus, split
from redrafter_training.distributed import checkpoints
from redrafter_training.tiny_target import train as target_command
from redrafter_training.tiny_target.train import RECIPES
from redrafter_vllm.checkpoint.locate import registry_dir
from redrafter_vllm.model.drafter import Drafter
from tests.paths import ROOT

SIZES = "--max-steps 40 --window 32 --batch-size 4 --beam-length 2"
ANSWERS = "--response-fraction 0.5 --responses.count 8 --responses.max-prompt 20"
EVERY = "--checkpoint-every 4 --evaluate-every 20 --evaluate-windows 4 --evaluate false --device cpu --max-seconds .inf"


@pytest.fixture(scope="module")
def target(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("target")
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    config = replace(RECIPES["short"], budget=Budget(1), window=32, head_dim=16, intermediate_size=48, **sizes)
    target_command.make_target("tiny", config, out, corpus_root, quiet=True)
    return out


@pytest.fixture(scope="module")
def arguments(target: Path, corpus_root: Path) -> list[str]:
    return f"--target {target} --data {corpus_root} --recipe short {SIZES} {ANSWERS} {EVERY}".split()


@pytest.mark.process
def test_killed_command_ends_like_an_uninterrupted_one(arguments: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "redrafter_training", *arguments, "--out", str(tmp_path / "cut")]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 240
        while checkpoints.latest(tmp_path / "cut.run" / "checkpoints") is None and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (tmp_path / "cut").exists()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*arguments, "--out", str(tmp_path / "cut")]) == 0
        assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    finally:
        torch.set_num_threads(threads)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]
    reports = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("cut", "whole")]
    assert reports[0]["steps"] == 40
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["training"] == reports[1]["training"]


@pytest.mark.slow
def test_files_of_a_run(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: Path) -> None:
    out = tmp_path / "drafter"
    short = [*arguments, "--max-steps", "6", "--evaluate", "true", "--log-every", "2", "--out", str(out)]
    assert main(short) == 0
    shown = capsys.readouterr().out
    assert "tokens per step" in shown
    assert "top 5" in shown
    # Any reader of JSON takes it: without a clock there is no limit, and no Infinity.
    report = json.loads((out / "training.json").read_text(), parse_constant=pytest.fail)
    assert report["config"]["budget"] == {"max_steps": 6, "max_seconds": None, "epochs": None}
    assert report["data"]["files"] > 0
    assert {"redrafter1_kl", "redrafter2_top5"} < report["metrics"].keys()
    assert report["held_out"]["4x2"]["tokens_per_step"] >= 1
    run = tmp_path / "drafter.run"
    assert "max_steps: 6" in (run / "config.yaml").read_text()
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the `train` extra)")
    with Image.open(run / "training.png") as picture:
        assert picture.size[0] > 600
        assert len(set(picture.convert("RGB").getdata())) > 50
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (the `train` extra)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    assert [event.step for event in events.Scalars("train/learning_rate")] == [2, 4, 6]
    held_out = {tag for tag in events.Tags()["scalars"] if tag.startswith("held_out/")}
    measures = ("kl", *(f"top{k}" for k in range(1, 6)))
    by_depth = {f"held_out/redrafter{depth}_{measure}" for depth in (1, 2) for measure in measures}
    assert held_out == by_depth | {"held_out/chain_estimate"}
    for name in ("gradient_norm", "tokens_per_second", "epoch"):
        assert all(event.value > 0 for event in events.Scalars(f"train/{name}"))
    assert [event.step for event in events.Scalars("held_out/redrafter2_top3")] == [6]

    # The stored keys alone repeat the run, and a finished run is not trained again.
    assert main(["--config", str(run / "config.yaml")]) == 0
    assert main(["--config", str(run / "config.yaml"), "--seed", "3"]) == 1
    assert "config.seed: 0 -> 3" in capsys.readouterr().err
    further = [*short, "--init-from", str(out), "--out", str(tmp_path / "further")]
    assert main(further) == 0
    assert (tmp_path / "further" / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()
    # It says what it comes from, and so does one that goes on from it, with one block more.
    start = json.loads((tmp_path / "further" / "training.json").read_text())["started_from"]
    assert start["name"] == "drafter" and start["steps"] == 6
    assert (start["data"], start["command"]) == (report["data"], report["command"])
    last = tmp_path / "last"
    from_there = ["--init-from", str(tmp_path / "further"), "--num-draft-layers", "3", "--max-steps", "4"]
    assert main([*short, *from_there, "--out", str(last)]) == 0
    deeper, content = Drafter.from_pretrained(last), json.loads((last / "training.json").read_text())
    assert deeper.config.num_draft_layers == 3 and all(bool(p.any()) for p in deeper.lm_head.parameters())
    assert content["parameters"] == report["parameters"] + 64 * 64 + 64
    assert content["started_from"]["started_from"] == start
    assert (
        "| started from | further, 6 steps, itself started from drafter, 6 steps |" in (last / "README.md").read_text()
    )


@pytest.mark.slow
def test_divergence_names_the_batch(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drafter"
    assert main([*arguments, "--learning-rate", "1e30", "--out", str(out)]) == 1
    message = capsys.readouterr().err
    (stored,) = (tmp_path / "drafter.run").glob("failed-step-*-rank-0.pt")
    assert str(stored) in message
    batch = torch.load(stored, weights_only=True)
    assert batch["tokens"].shape == batch["valid"].shape == (4, 32)
    assert not out.exists()


def test_dry_run_writes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: Path
) -> None:
    assert main([*arguments, "--dry-run", "--out", str(tmp_path / "drafter"), "--num-workers", "[1, 4]"]) == 0
    shown = capsys.readouterr().out
    # 2 x (32 x 32) + 32 of the RNN, 2 x (64 x 64 + 64) of the blocks, 300 x 64 of the output layer
    assert f"{2 * 32 * 32 + 32 + 2 * (64 * 64 + 64) + 300 * 64:,} parameters" in shown
    assert "1 to 4 Ray workers" in shown
    assert "GiB" in shown
    assert "50% of the rows: 8 texts, generated first" in shown
    assert "early stop" not in shown and "at once in a worker" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_plan_in_epochs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus_root: Path, target: Path
) -> None:
    start = arguments.index("--max-steps")
    without_steps = arguments[:start] + arguments[start + 2 :]
    more = ["--epochs", "2", "--micro-batch-size", "1", "--patience", "3", "--dry-run"]
    assert main([*without_steps, *more, "--out", str(tmp_path / "drafter")]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    # Half of the four rows are from the data: two windows of BOS and 31 tokens a step.
    tokenizer = AutoTokenizer.from_pretrained(target)
    training, _ = split(load_corpus(corpus_root))
    tokens = sum(len(tokenizer(file.text, add_special_tokens=False)["input_ids"]) + 1 for file in training)
    steps = math.ceil(tokens // 31 / 2)
    assert f"{2 * steps:,}: 2 epochs of {steps:,}.0 steps" in shown
    assert "at most 1 rows at once in a worker" in shown
    assert "after 3 evaluations without a better one; one every 20 steps" in shown
    assert list(tmp_path.iterdir()) == []


def test_mistakes_give_a_message(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: Path
) -> None:
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("learning_rat: 1\n")
    for wrong, message in (
        (["--config", str(unknown)], "learning_rat"),
        (["--num-workers", "5"], "batch_size counts the rows of all workers"),
        (["--num-workers", "[3, 2]"], "min, max"),
        (["--beam-length", "0"], "beam_length"),
        (["--epochs", "2"], "one of max_steps and epochs says how long to train"),
        (["--patience", "2", "--evaluate-every", "0"], "patience counts evaluations"),
        (["--patience", "-1"], "patience must not be negative"),
        (["--recipe", "best"], "best"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *wrong])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    own_text = ["--max-steps", "null", "--epochs", "2", "--response-fraction", "1", "--out", str(tmp_path / "x")]
    assert main([*arguments, *own_text]) == 1
    assert "all rows are the target's own text" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_default_output_folders(target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from redrafter_training.config.job import Job

    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path))
    assert Job(str(target), "stdlib").out_dir == target / "redrafter"
    assert Job("lmsys/vicuna-7b-v1.3", "stdlib").out_dir == tmp_path / "lmsys--vicuna-7b-v1.3"
    assert Job("lmsys/vicuna-7b-v1.3", "stdlib").out_dir == registry_dir("lmsys/vicuna-7b-v1.3")


def test_relative_paths_are_made_absolute(target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from redrafter_training.config.job import Job

    monkeypatch.chdir(target.parent)
    job = Job(target.name, "stdlib", run_dir=Path("run"))
    elsewhere = job.absolute()
    monkeypatch.chdir(tmp_path)
    assert elsewhere.target == str(target)
    assert elsewhere.data == "stdlib"
    assert elsewhere.out_dir == target / "redrafter"
    assert elsewhere.checkpoints == target.parent / "run" / "checkpoints"
