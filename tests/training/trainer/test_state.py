# SPDX-License-Identifier: Apache-2.0
"""An interrupted and resumed training gives the result of an uninterrupted one."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed import checkpoints
from redrafter_training.distributed.checkpoints import CheckpointWriteError
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.loop import Hooks, build_drafter, distill
from redrafter_training.trainer.metrics import CHAIN
from redrafter_training.trainer.state import ResumeError, budget_growth, check_identity, read_state
from redrafter_vllm.model.drafter import Drafter
from tests.training.full_disk import disk_of

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = DistillConfig(
    Budget(12), beam_length=3, window=24, batch_size=4, chunk=7, responses=ResponseConfig(max_prompt=8, min_prompt=2)
)
HOOKS = Hooks(checkpoint_every=3, evaluate_every=4, evaluate=lambda drafter, step: {"step": float(step)})


class Interruption(Exception):  # noqa: N818
    """A kill, as an exception."""


def batches(stop_at: int | None = None) -> Iterator[Windows]:
    generator = torch.Generator().manual_seed(0)
    step = 0
    while True:
        if step == stop_at:
            raise Interruption
        # Uses global random numbers too, as a sampling target would.
        yield Windows.full(torch.randint(40, (4, 24), generator=generator))
        step += 1


def train(
    target: TargetModel,
    directory: Path | None,
    stop_at: int | None = None,
    hooks: Hooks = HOOKS,
    config: DistillConfig = CONFIG,
) -> Drafter:
    drafter = build_drafter(target, config)
    context = LocalContext(directory)
    distill(drafter, target, batches(stop_at), config, context=context, hooks=hooks, quiet=True)
    return drafter


def assert_same(first: Drafter, second: Drafter) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("stop_at", [1, 3, 4, 8, 11])
def test_ends_bit_identical_to_an_uninterrupted_run(tiny_target: TargetModel, tmp_path: Path, stop_at: int) -> None:
    expected = train(tiny_target, tmp_path / "whole")
    with pytest.raises(Interruption):
        train(tiny_target, tmp_path / "cut", stop_at)
    torch.manual_seed(99)
    assert_same(train(tiny_target, tmp_path / "cut"), expected)
    whole, cut = (read_state(tmp_path / name / "step-00000012") for name in ("whole", "cut"))
    assert torch.equal(whole["history"], cut["history"])
    assert len(cut["history"]) == 12
    assert [step for step, _ in cut["evaluations"]] == [4, 8, 12]
    assert torch.equal(whole["rng"][0]["torch"], cut["rng"][0]["torch"])


MEASURED = {2: 0.5, 4: 0.75, 6: 0.7, 8: 0.75, 10: 0.2}
STOPPING = Hooks(
    checkpoint_every=3,
    evaluate_every=2,
    evaluate=lambda drafter, step: {CHAIN: MEASURED[step], "sum": float(drafter.output.weight.detach().sum())},
    patience=3,
    steps_per_epoch=4.0,
    log_every=2,
)


@pytest.mark.parametrize("stop_at", [2, 4, 5, 7, 9])
def test_accumulation_epochs_and_early_stopping_continue_as_if_uninterrupted(
    tiny_target: TargetModel, tmp_path: Path, stop_at: int
) -> None:
    """The best evaluation is that of step 4; steps 6, 8 (as good, not better) and 10 use the patience up."""
    budget = Budget(epochs=10).in_steps(STOPPING.steps_per_epoch)
    config = replace(CONFIG, budget=budget, micro_batch_size=3)
    expected = train(tiny_target, tmp_path / "whole", None, STOPPING, config)
    with pytest.raises(Interruption):
        train(tiny_target, tmp_path / "cut", stop_at, STOPPING, config)
    torch.manual_seed(99)
    assert_same(train(tiny_target, tmp_path / "cut", None, STOPPING, config), expected)
    whole, cut = (read_state(tmp_path / name / "step-00000010") for name in ("whole", "cut"))
    assert torch.equal(whole["history"], cut["history"]) and len(cut["history"]) == 10
    assert whole["evaluations"] == cut["evaluations"]
    assert [step for step, _ in cut["course"]] == [2, 4, 6, 8, 10]
    assert [figures["train/epoch"] for _, figures in cut["course"]] == [0.5, 1.0, 1.5, 2.0, 2.5]
    for name, tensor in whole["drafter"].items():
        assert torch.equal(tensor, cut["drafter"][name])
    # The drafter at the end is that of step 4, by what was measured then, and not the last one.
    assert float(expected.output.weight.sum()) == dict(whole["evaluations"])[4]["sum"]
    last = whole["drafter"]
    assert any(not torch.equal(tensor, last[name]) for name, tensor in expected.state_dict().items())
    # The same command again makes no step, more patience does.
    assert_same(train(tiny_target, tmp_path / "cut", 0, STOPPING, config), expected)
    with pytest.raises(Interruption):
        train(tiny_target, tmp_path / "cut", 11, replace(STOPPING, patience=4), config)


def test_patience_that_is_not_used_up_ends_with_the_best_drafter(tiny_target: TargetModel, tmp_path: Path) -> None:
    trained = train(tiny_target, tmp_path, None, STOPPING, replace(CONFIG, budget=Budget(6)))
    state = read_state(tmp_path / "step-00000006")
    assert float(trained.output.weight.sum()) == dict(state["evaluations"])[4]["sum"]


def test_checkpoints_of_earlier_versions_continue(tiny_target: TargetModel, tmp_path: Path) -> None:
    """They have no entries of the log, no best weights, and an identity without the keys of today."""
    hooks = replace(HOOKS, identity={"config": asdict(CONFIG)})
    expected = train(tiny_target, None, hooks=hooks)
    with pytest.raises(Interruption):
        train(tiny_target, tmp_path, 7, hooks)
    path = tmp_path / "step-00000006" / "state.pt"
    state = torch.load(path, weights_only=True)
    identity = json.loads(state["identity"])
    for holder, key in ((identity["config"], "micro_batch_size"), (identity["config"]["budget"], "epochs")):
        assert holder.pop(key) is None
    del state["course"], state["best"]
    torch.save(state | {"identity": json.dumps(identity)}, path)
    (path.parent / checkpoints.MANIFEST).write_text(json.dumps({"state.pt": path.stat().st_size}))
    assert_same(train(tiny_target, tmp_path, None, hooks), expected)


def test_epochs_and_steps_are_no_limits_of_each_other(tiny_target: TargetModel, tmp_path: Path) -> None:
    def state(budget: Budget) -> dict[str, str]:
        return {"identity": json.dumps({"config": {"budget": asdict(budget)}}, default=str), "step": "4"}

    more = {"config": {"budget": asdict(Budget(epochs=3))}}
    assert budget_growth(state(Budget(epochs=2)), more) == ["config.budget.epochs: 2 -> 3"]
    check_identity(state(Budget(epochs=2)), more)
    for other in (Budget(epochs=4), Budget(100)):
        with pytest.raises(ResumeError, match="epochs"):
            check_identity(state(other), more)
    with pytest.raises(ResumeError, match="max_steps"):
        check_identity(state(Budget(epochs=2)), {"config": {"budget": asdict(Budget(100))}})


def test_finished_training_is_not_repeated(tiny_target: TargetModel, tmp_path: Path) -> None:
    expected = train(tiny_target, tmp_path)
    assert_same(train(tiny_target, tmp_path, stop_at=0), expected)


def test_other_settings_are_refused(tiny_target: TargetModel, tmp_path: Path) -> None:
    train(tiny_target, tmp_path, hooks=replace(HOOKS, identity={"config": {"seed": 0}, "data": "a"}))
    with pytest.raises(ResumeError, match=r"config\.seed: 0 -> 1.*--resume false"):
        train(tiny_target, tmp_path, hooks=replace(HOOKS, identity={"config": {"seed": 1}, "data": "a"}))


def test_more_steps_continue_a_finished_run(
    tiny_target: TargetModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(steps: int, stop_at: int | None = None) -> Drafter:
        config = replace(CONFIG, budget=Budget(steps))
        hooks = replace(HOOKS, identity={"config": asdict(config)}, log=lambda step, f: logged.append((step, f)))
        drafter = build_drafter(tiny_target, config)
        distill(drafter, tiny_target, batches(stop_at), config, context=LocalContext(tmp_path), hooks=hooks)
        return drafter

    logged: list[tuple[int, Mapping[str, float]]] = []
    first = run(8)
    with pytest.raises(ResumeError, match=r"config\.budget\.max_steps: 8 -> 6"):
        run(6)
    assert_same(run(8, stop_at=0), first)
    capsys.readouterr()
    logged.clear()
    longer = run(20)
    assert "continuing from step 8 with a larger budget (config.budget.max_steps: 8 -> 20)" in capsys.readouterr().out
    state = read_state(tmp_path / "step-00000020")
    assert len(state["history"]) == 20
    # After step 8 the cosine of 20 steps is at 8/20 of its way, and so the learning rate has risen again.
    rates = {step: figures["train/learning_rate"] for step, figures in logged if "train/learning_rate" in figures}
    way = (9 / 20 - CONFIG.warmup) / (1 - CONFIG.warmup)
    assert rates[10] == pytest.approx(CONFIG.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * way)) / 2))
    assert_same(run(20, stop_at=0), longer)


def test_limits_of_earlier_versions_and_of_the_clock() -> None:
    old = {"identity": '{"config": {"budget": {"max_steps": 4, "max_seconds": Infinity}, "seed": 0}}'}

    def growth(steps: int, seconds: float) -> list[str]:
        return budget_growth(old, {"config": {"budget": {"max_steps": steps, "max_seconds": seconds}, "seed": 1}})

    assert growth(4, math.inf) == growth(3, math.inf) == growth(4, 60.0) == []
    assert growth(5, 60.0) == ["config.budget.max_steps: 4 -> 5"]
    old["identity"] = old["identity"].replace("Infinity", "60.0")
    assert growth(4, 90.0) == ["config.budget.max_seconds: 60.0 -> 90.0"]
    assert growth(4, math.inf) == ["config.budget.max_seconds: 60.0 -> None"]


def test_full_disk_leaves_the_last_checkpoint(tiny_target: TargetModel, tmp_path: Path) -> None:
    with pytest.raises(Interruption):
        train(tiny_target, tmp_path, stop_at=5)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with disk_of(10_000), pytest.raises(CheckpointWriteError, match=r"step 6 could not be written.*are intact"):
        train(tiny_target, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert_same(train(tiny_target, tmp_path), train(tiny_target, None))


def test_only_complete_checkpoints_count_and_two_are_kept(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "a").write_text("abc")

    for step in (1, 2, 10):
        checkpoints.store(tmp_path, step, write)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    assert json.loads((tmp_path / "step-00000010" / checkpoints.MANIFEST).read_text()) == {"a": 3}
    (tmp_path / "step-00000010" / "a").write_text("ab")
    (tmp_path / "step-00000011").mkdir()
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000002"


def test_previous_checkpoint_stays_until_the_next_is_complete(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "a").write_text("abc")

    def fail(directory: Path) -> None:
        write(directory)
        assert checkpoints.latest(tmp_path) == tmp_path / "step-00000001"
        raise OSError(28, "No space left on device")

    checkpoints.store(tmp_path, 1, write, keep=1)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        checkpoints.store(tmp_path, 2, fail, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_unreadable_state(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ResumeError, match="cannot be read"):
        read_state(tmp_path)
