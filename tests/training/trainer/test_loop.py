# SPDX-License-Identifier: Apache-2.0
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from redrafter_training.config.recipe import Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.model import TargetModel, TargetOutputs
from redrafter_training.trainer.gradients import Replica, StepFigures, accumulate_gradients
from redrafter_training.trainer.loop import Hooks, add_blocks, build_drafter, distill, use_target_head
from redrafter_training.trainer.lr_schedule import learning_rate_scale, steps
from redrafter_training.trainer.pace import Pace

CONFIG = DistillConfig(
    Budget(60), beam_length=3, window=24, batch_size=4, chunk=7, responses=ResponseConfig(max_prompt=8, min_prompt=2)
)


def one_batch(seed: int = 0) -> Windows:
    return Windows.full(torch.randint(40, (4, 24), generator=torch.Generator().manual_seed(seed)))


class FailingTarget(TargetModel):
    """Gives NaN from call number `fail_at` on."""

    def __init__(self, target: TargetModel, fail_at: int) -> None:
        super().__init__(target.model)
        self.calls_left = fail_at

    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        outputs = super().outputs(tokens, positions, draft_tokens)
        self.calls_left -= 1
        return outputs if self.calls_left >= 0 else replace(outputs, hidden=outputs.hidden * float("nan"))


def test_overfits_one_batch(tiny_target: TargetModel) -> None:
    history = distill(build_drafter(tiny_target, CONFIG), tiny_target, repeat(one_batch()), CONFIG, quiet=True)
    assert len(history) == 60
    assert history[-1].loss < 0.6 * history[0].loss
    assert all(
        after < before for before, after in zip(history[0].loss_by_depth, history[-1].loss_by_depth, strict=True)
    )
    assert history[-1].agreement[0] > 0.3


@pytest.mark.parametrize(
    "labels", [LossConfig(1.0, "data"), LossConfig(1.0), LossConfig(0.5, temperature=2.0)], ids=str
)
def test_other_losses_overfit_too(tiny_target: TargetModel, labels: LossConfig) -> None:
    config = replace(CONFIG, loss=labels)
    history = distill(build_drafter(tiny_target, config), tiny_target, repeat(one_batch()), config, quiet=True)
    assert history[-1].loss < 0.7 * history[0].loss


def test_trimmed_drafter_overfits_and_agrees_within_its_vocabulary(tiny_target: TargetModel) -> None:
    config = replace(CONFIG, draft_vocab_size=12)
    kept = torch.arange(3, 39, 3)
    drafter = build_drafter(tiny_target, config, kept)
    assert torch.equal(drafter.output.weight[:, 16:], tiny_target.head_weight[kept])
    history = distill(drafter, tiny_target, repeat(one_batch()), config, quiet=True)
    assert history[-1].loss < 0.6 * history[0].loss
    top1_ids = tiny_target.outputs(one_batch().tokens).top1_ids[:, 1:-2]
    possible = float(torch.isin(top1_ids, kept).float().mean())
    assert 0 < possible < 0.6
    assert 0.5 * possible < history[-1].agreement[0] <= possible + 0.01


def test_the_targets_head_is_used_and_not_trained(tiny_target: TargetModel) -> None:
    kept = torch.arange(3, 39, 3)
    config = replace(CONFIG, target_head=True, draft_vocab_size=12, loss=LossConfig(hidden_weight=1.0))
    drafter = build_drafter(tiny_target, config, kept)
    assert drafter.config.exit_dim == tiny_target.hidden_size
    history = distill(drafter, tiny_target, repeat(one_batch()), config, quiet=True)
    assert history[-1].loss < 0.8 * history[0].loss
    assert torch.equal(drafter.output.weight, tiny_target.head_weight[kept])


def test_the_targets_head_needs_its_width(tiny_target: TargetModel) -> None:
    config = replace(CONFIG, target_head=True, exit_dim=24)
    with pytest.raises(ValueError, match="hidden size, 16, not 24"):
        build_drafter(tiny_target, config)
    with pytest.raises(ValueError, match="hidden size, 16, not 32"):
        use_target_head(build_drafter(tiny_target, CONFIG), tiny_target)


@pytest.mark.parametrize(
    ("exit_dim", "blocks", "vocabulary"), [(None, 0, None), (None, 1, 12), (16, 2, 12), (24, 0, None)]
)
def test_further_blocks_change_nothing_until_they_are_trained(
    tiny_target: TargetModel, exit_dim: int | None, blocks: int, vocabulary: int | None
) -> None:
    config = replace(CONFIG, exit_dim=exit_dim, num_draft_layers=blocks, draft_vocab_size=vocabulary, budget=Budget(30))
    drafter = build_drafter(tiny_target, config, None if vocabulary is None else torch.arange(3, 39, 3))
    distill(drafter, tiny_target, repeat(one_batch()), config, quiet=True)
    assert add_blocks(drafter, 0) is drafter
    deeper = add_blocks(drafter, 2)
    assert deeper.config == replace(drafter.config, num_draft_layers=blocks + 2)
    context, state = torch.randn(2, 5, tiny_target.hidden_size).unbind()
    with torch.no_grad():
        assert torch.equal(deeper(context, state), drafter(context, state))
    if vocabulary is not None:
        assert torch.equal(deeper.d2t, drafter.d2t)
    history = distill(deeper, tiny_target, repeat(one_batch()), config, quiet=True)
    assert history[-1].loss < 0.9 * history[0].loss
    assert all(parameter.any() for parameter in deeper.lm_head[blocks:-1].parameters())


def test_draft_tokens_must_fit_the_configuration(tiny_target: TargetModel) -> None:
    with pytest.raises(ValueError, match="draft_vocab_size"):
        build_drafter(tiny_target, CONFIG, torch.arange(3))


def test_same_seed_same_drafter(tiny_target: TargetModel) -> None:
    config = replace(CONFIG, budget=Budget(5))
    drafters = [build_drafter(tiny_target, config) for _ in range(2)]
    for drafter in drafters:
        distill(drafter, tiny_target, repeat(one_batch()), config, quiet=True)
    for first, second in zip(drafters[0].parameters(), drafters[1].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_chunks_do_not_change_the_gradient(tiny_target: TargetModel) -> None:
    gradients = []
    for chunk in (4, 21, 100):
        drafter = build_drafter(tiny_target, CONFIG)
        context = LocalContext()
        replica = Replica(drafter, context)
        config = replace(CONFIG, chunk=chunk)
        accumulate_gradients(replica, tiny_target.embedding, tiny_target, one_batch(), config, context)
        gradients.append(torch.cat([p.grad.flatten() for p in drafter.parameters() if p.grad is not None]))
    scale = gradients[0].abs().max()
    for other in gradients[1:]:
        # bfloat16 products summed in another order
        assert (other - gradients[0]).abs().max() < 0.02 * scale


def uneven_batch() -> Windows:
    """Seven rows of 24 tokens at most, with 8 to 24 that count."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([[24], [8], [13], [24], [9], [20], [11]])
    return Windows(torch.randint(40, (7, 24), generator=generator), torch.arange(24) < lengths)


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 50])
def test_accumulated_parts_are_one_big_batch(tiny_target: TargetModel, rows: int) -> None:
    """The mean is over all tokens of the step, whatever part they are in."""
    config = replace(CONFIG, mixed_precision="none", batch_size=7)
    whole, whole_figures = gradient_of(tiny_target, uneven_batch(), config)
    parts, figures = gradient_of(tiny_target, uneven_batch(), replace(config, micro_batch_size=rows))
    assert (parts - whole).abs().max() < 1e-5 * whole.abs().max()
    assert figures.loss == pytest.approx(whole_figures.loss, rel=1e-5)
    assert figures.loss_by_depth == pytest.approx(whole_figures.loss_by_depth, rel=1e-5)
    assert figures.agreement == pytest.approx(whole_figures.agreement)


def test_a_mean_of_the_parts_means_would_be_seen(tiny_target: TargetModel) -> None:
    config = replace(CONFIG, mixed_precision="none", batch_size=7)
    whole, _ = gradient_of(tiny_target, uneven_batch(), config)
    means = [gradient_of(tiny_target, uneven_batch().rows(torch.tensor([row])), config)[0] for row in range(7)]
    assert (torch.stack(means).mean(0) - whole).abs().max() > 0.01 * whole.abs().max()


def gradient_of(target: TargetModel, batch: Windows, config: DistillConfig) -> tuple[Tensor, StepFigures]:
    drafter = build_drafter(target, config)
    context = LocalContext()
    figures = accumulate_gradients(Replica(drafter, context), target.embedding, target, batch, config, context)
    return torch.cat([p.grad.flatten() for p in drafter.parameters() if p.grad is not None]), figures


def test_the_log_has_gradient_norm_throughput_and_epochs(tiny_target: TargetModel) -> None:
    logged: dict[int, Mapping[str, float]] = {}
    config = replace(CONFIG, budget=Budget(6), mixed_precision="none")
    hooks = Hooks(log_every=2, log=logged.__setitem__, steps_per_epoch=4.0)
    distill(build_drafter(tiny_target, config), tiny_target, repeat(one_batch()), config, hooks=hooks, quiet=True)
    assert [figures["train/epoch"] for figures in logged.values()] == [0.5, 1.0, 1.5]
    # The first step's gradient is that of the first weights.
    again = build_drafter(tiny_target, config)
    first = replace(config, budget=Budget(6))
    distill(
        again, tiny_target, repeat(one_batch()), first, hooks=Hooks(log_every=1, log=logged.__setitem__), quiet=True
    )
    expected, _ = gradient_of(tiny_target, one_batch(), config)
    assert logged[1]["train/gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert "train/epoch" not in logged[1]
    assert all(figures["train/tokens_per_second"] > 0 for figures in logged.values())


def test_pace_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 50.0, 53.0, 60.0, 61.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = Pace()
    for tokens in (100, 400):
        with pace.step():
            pace.add(tokens)
    assert pace.rate() == 100.0  # 500 tokens in 2 + 3 seconds
    with pace.step():
        pace.add(7)
    assert pace.rate() == 7.0
    assert pace.rate() == 0.0


def test_tokens_without_padding() -> None:
    assert uneven_batch().num_tokens == 24 + 8 + 13 + 24 + 9 + 20 + 11
    doc_ids = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])
    assert Windows(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bool), doc_ids).num_tokens == 7


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "steps"),
    [(1, 10.0, 10), (1.1, 10.0, 11), (0.5, 7.0, 4), (3, 2.5, 8), (0.001, 9.0, 1)],
)
def test_epochs_in_steps(epochs: float, steps_per_epoch: float, steps: int) -> None:
    budget = Budget(epochs=epochs, max_seconds=5.0)
    with pytest.raises(ValueError, match="no number of steps before the data is read"):
        budget.used(1, 0.0)
    assert budget.in_steps(steps_per_epoch) == Budget(steps, 5.0)
    assert Budget(3).in_steps(steps_per_epoch) == Budget(3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "neither"),
        ({"max_steps": 3, "epochs": 2.0}, "got 3 and 2"),
        ({"epochs": 0.0}, "positive"),
        ({"epochs": math.inf}, "finite"),
    ],
    ids=str,
)
def test_impossible_budgets(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Budget(**change)


def test_non_finite_loss_stops_and_names_the_step(tiny_target: TargetModel) -> None:
    drafter = build_drafter(tiny_target, CONFIG)
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        distill(drafter, FailingTarget(tiny_target, 2), repeat(one_batch()), CONFIG, quiet=True)
    assert all(p.isfinite().all() for p in drafter.parameters())


def test_target_stays_frozen(tiny_target: TargetModel) -> None:
    before = {name: p.clone() for name, p in tiny_target.model.named_parameters()}

    def batches() -> Iterator[Windows]:
        yield from (one_batch(seed) for seed in range(9))

    distill(build_drafter(tiny_target, CONFIG), tiny_target, batches(), replace(CONFIG, budget=Budget(3)), quiet=True)
    for name, parameter in tiny_target.model.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])


def test_learning_rate_rises_then_falls_to_the_floor() -> None:
    assert learning_rate_scale(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate_scale(0.1, 0.1) == pytest.approx(1.0)
    assert learning_rate_scale(0.55, 0.1, floor=0.0) == pytest.approx(0.5)
    assert learning_rate_scale(1.0, 0.1, floor=0.02) == pytest.approx(0.02)


def test_budget_ends_by_the_limit_that_is_reached_first() -> None:
    assert Budget(10, 100.0).used(5, 80.0) == pytest.approx(0.8)
    assert Budget(10, 100.0).used(5, 20.0) == pytest.approx(0.5)
    assert Budget(10).used(12, 1e9) == 1.0
    assert [tick.step for tick in steps(Budget(3), "x", quiet=True)] == [0, 1, 2]
    assert len(list(steps(Budget(10**6, 0.01), "x", quiet=True))) < 10**6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"beam_length": 0}, "beam_length"),
        ({"window": 4, "beam_length": 4}, "beam_length"),
        ({"depth_decay": 0.0}, "depth_decay"),
        ({"response_fraction": 1.1}, "response_fraction"),
        ({"window": 8}, "max_prompt"),
        ({"chunk": 0}, "chunk"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"draft_vocab_size": 0}, "draft_vocab_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"loss": LossConfig(hidden_weight=1.0)}, "needs target_head"),
    ],
)
def test_impossible_settings(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(CONFIG, **change)


def test_depth_weights() -> None:
    assert replace(CONFIG, depth_decay=0.5).depth_weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
