# SPDX-License-Identifier: Apache-2.0
"""One file of keys for all commands: what each of them gets, what is refused before any work, and what is run again."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from redrafter_training import pipeline
from redrafter_training.cli import parse, parse_keys
from redrafter_training.config.pipeline import Pipeline
from redrafter_training.config.recipe import RECIPES
from redrafter_training.evaluate import build_parser
from redrafter_training.pipeline import main, recipe_file, section_arguments
from redrafter_training.responses.config import PromptJob, ResponseJob
from redrafter_training.run import steps as running
from redrafter_training.run.steps import FinishedSteps, Step, run_step, run_steps
from tests.paths import ROOT

RECIPE = """\
target: acme/chat
invent: {count: 9, engine: {max_num_seqs: 4}}
respond: {window: 512, temperatures: [0.0, 0.7]}
train:
  window: 512
  max_seconds: .inf
  overwrite: true
  trust_remote_code: false
  packing: false
  loss: {label_share: 0.25}
  responses: {any_target: true}
  hidden_cache: states
evaluate: {prompts: mt-bench, beam_width: [1, 4], temperature: 0.7}
"""


def write(tmp_path: Path, text: str = RECIPE) -> str:
    (tmp_path / "recipe.yaml").write_text(text)
    return str(tmp_path / "recipe.yaml")


def test_what_each_command_gets(tmp_path: Path) -> None:
    keys = ["--config", write(tmp_path), "--out", "runs/one", "--train.max_steps", "7", "--invent.count=8"]
    given = section_arguments(parse_keys(Pipeline, "x", "y", keys), "acme/chat")
    assert list(given) == ["invent", "respond", "train", "evaluate"]
    invent = parse_keys(PromptJob, "x", "y", given["invent"])
    wanted = PromptJob(target="acme/chat", out=Path("runs/one/prompts.jsonl"), count=8, engine={"max_num_seqs": 4})
    assert invent == wanted
    respond = parse_keys(ResponseJob, "x", "y", given["respond"])
    assert (respond.data, respond.out) == ("runs/one/prompts.jsonl", Path("runs/one/responses"))
    assert (respond.window, respond.temperatures) == (512, (0.0, 0.7))
    job, config, _, _ = parse(given["train"])
    assert (job.target, job.data, job.out) == ("acme/chat", "runs/one/responses", Path("runs/one/drafter"))
    assert job.hidden_cache == Path("runs/one/states") and job.overwrite and not job.trust_remote_code
    assert (config.budget.max_steps, config.budget.max_seconds) == (7, float("inf"))
    assert config.loss.label_share == 0.25 and config.responses.any_target and not config.packing
    evaluate = build_parser().parse_args(given["evaluate"])
    assert (evaluate.drafter, evaluate.beam_width, evaluate.card) == ("runs/one/drafter", [1, 4], True)
    assert (evaluate.prompts, evaluate.temperature) == ("mt-bench", 0.7)


def test_the_commands_as_they_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REDRAFTER_HOME", raising=False)
    assert main(["smollm2-135m-instruct", "--out", "made here", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["# fetch", "# invent", "# respond", "# train", "# evaluate"]
    assert lines[1] == "python -m redrafter_training.smollm2"
    target = "~/.cache/redrafter/targets/SmolLM2-135M-Instruct"
    assert lines[3] == (
        f"python -m redrafter_training.invent --target {target} --out 'made here/prompts.jsonl' --count 17000"
        " --openings general --opening-share 0.62 --max-prompt 256"
    )
    assert lines[5].endswith(
        "--data 'made here/prompts.jsonl' --out 'made here/responses' --window 1024 --shard-size 2048"
    )
    assert "--hidden-cache 'made here/hidden-states'" in lines[7] and "--beam-width 1 2 4 8" in lines[9]
    assert not (tmp_path / "made here").exists()
    # Another target needs no fetching.
    assert main(["smollm2-135m-instruct", "--out", "o", "--target", "acme/chat", "--dry-run"]) == 0
    assert "fetch" not in capsys.readouterr().out


def test_the_shipped_recipe() -> None:
    file = recipe_file("smollm2-135m-instruct")
    keys = parse_keys(Pipeline, "x", "y", ["--config", str(file), "--out", "o"])
    given = section_arguments(keys, "t")
    config = parse(given["train"])[1]
    assert (config.window, config.drafter_width(576), config.draft_vocab_size) == (1024, 576, 8192)
    assert config.loss == replace(RECIPES["standard"].loss, hidden_weight=30)
    assert parse_keys(ResponseJob, "x", "y", given["respond"]).window == config.window
    evaluate = build_parser().parse_args(given["evaluate"])
    assert (evaluate.prompts, evaluate.new_tokens, evaluate.beam_width) == ("mt-bench", 256, [1, 2, 4, 8])
    assert recipe_file("no-such-recipe") == Path("no-such-recipe")


def test_the_shipped_recipe_makes_a_drafter_like_the_committed_one() -> None:
    """With as much data of both kinds, and as long a training, in one part instead of two."""
    made = json.loads((ROOT / "tests/assets/smollm2-135m-instruct/redrafter/training.json").read_text("utf-8"))
    keys = parse_keys(Pipeline, "x", "y", ["--config", str(recipe_file("smollm2-135m-instruct")), "--out", "o"])
    given = section_arguments(keys, "t")
    invent = parse_keys(PromptJob, "x", "y", given["invent"])
    first = made["started_from"]
    prompts = made["data"]["distinct_prompts"] + first["data"]["distinct_prompts"]
    # docs/dev/log.md: 4,608 of the first part's prompts and all of the second's began with given words.
    assert first["data"]["distinct_prompts"] == 11008
    assert invent.count == pytest.approx(prompts, rel=0.01)
    share = 1 - (11008 - 4608) / prompts
    assert (invent.openings, invent.opening_share) == ("general", pytest.approx(share, abs=0.005))
    respond = parse_keys(ResponseJob, "x", "y", given["respond"])
    assert list(respond.temperatures) == made["data"]["regenerated"]["temperatures"] and respond.count is None
    config = json.loads(json.dumps(asdict(parse(given["train"])[1])))
    assert config["budget"]["max_steps"] == pytest.approx(made["steps"] + first["steps"], rel=0.01)
    assert config["learning_rate"] == first["config"]["learning_rate"]
    assert parse(given["train"])[1].drafter_width(576) == made["config"]["exit_dim"]
    parts = {"budget", "learning_rate", "seed", "exit_dim"}
    stored = {key: value for key, value in made["config"].items() if key not in parts}
    assert {key: config[key] for key in stored} == stored


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 9", "number: 9", "these are keys of the section invent"),
        ("window: 512, temp", "window: 512, seed: x, temp", "these are keys of the section respond"),
        ("label_share: 0.25", "label_share: 2", "label_share must be in [0, 1]"),
        ("packing: false", "packing: 5", "these are keys of the section train"),
        ("beam_width: [1, 4]", "width: 1", "these are keys of the section evaluate"),
        ("target: acme/chat\n", "", "there is no target"),
        ("respond: {", "nothing: {", "nothing"),
        ("respond: {window: 512, temperatures: [0.0, 0.7]}\n", "", "invent needs respond"),
        ("count: 9", "out: elsewhere", "invent.out follows from the other keys"),
        ("window: 512\n", "window: 512\n  data: mine\n", "train.data follows from the other keys"),
    ],
)
def test_mistakes_are_found_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    monkeypatch.setattr(pipeline, "_main", lambda *arguments: pytest.fail("work has begun"))
    assert old in RECIPE
    with pytest.raises(SystemExit) as end:
        main([write(tmp_path, RECIPE.replace(old, new, 1)), "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_finished_steps_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again runs what has other arguments or another target, what has lost its result, and what follows a new one."""
    steps = [Step(name, f"module.{name}", ("--seed", "1"), tmp_path, (f"{name}.txt",)) for name in ("a", "b", "c")]
    started: list[str] = []
    code, content = 0, "one"

    def fake(step: Step) -> int:
        started.append(step.name)
        if not code:
            (tmp_path / f"{step.name}.txt").write_text(content)
        return code

    monkeypatch.setattr(running, "run_step", fake)

    def again(given: list[Step] = steps, target: str = "t") -> list[str]:
        started.clear()
        assert run_steps(given, FinishedSteps(tmp_path, {"weights": target}), done=1) == code
        return list(started)

    assert again() == ["a", "b", "c"]
    assert "2/4 a: python -m module.a --seed 1\n" in capsys.readouterr().out
    assert again() == [] and "2/4 a: finished before" in capsys.readouterr().out
    (tmp_path / "b.txt").unlink()
    assert again() == ["b"], "which writes the same as before"
    (tmp_path / "b.txt").unlink()
    content = "two"
    assert again() == ["b", "c"]
    other = [steps[0], Step("b", "module.b", ("--seed", "2"), tmp_path, ("b.txt",)), steps[2]]
    assert again(other) == ["b"]
    assert again(other, "u") == ["a", "b", "c"]
    code = 3
    (tmp_path / "a.txt").unlink()
    assert again(other, "u") == ["a"], "the steps after one that fails are not started"
    (tmp_path / running.STATE_FILE).write_text("[]")
    code = 0
    assert again(other, "u") == ["a", "b", "c"]


SCRIPT = """\
import pathlib, signal, sys, time
print("begun", flush=True)
if sys.argv[1] == "wait":
    # A shell's background job, as the tests may be, hands down that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pathlib.Path(__file__).with_name("waiting").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
if sys.argv[1] == "die":
    signal.raise_signal(signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scripted.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


@pytest.mark.process
def test_exit_codes_and_output(scripted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = scripted / "stored.txt"
    assert run_step(Step("x", "scripted", ("0",), scripted, stdout=stored)) == 0
    assert stored.read_text() == "begun\n" == capfd.readouterr().out
    stored.unlink()
    assert run_step(Step("x", "scripted", ("7",), scripted, stdout=stored)) == 7
    assert not stored.exists(), "results of a command that fails are not kept"
    assert run_step(Step("x", "scripted", ("die",), scripted)) == 137


@pytest.mark.process
def test_a_signal_reaches_the_command_once(scripted: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    stored = scripted / "stored.txt"

    def interrupt() -> None:
        while not (scripted / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert run_step(Step("x", "scripted", ("wait",), scripted, stdout=stored)) == 130
    assert signal.getsignal(signal.SIGINT) is before
