# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redrafter_training.config.recipe import LossConfig
from redrafter_training.trainer.fused_head_loss import HeadLoss, Truth, head_loss, head_loss_reference

DEPTHS, BATCH, WIDTH, VOCAB = 3, 2, 5, 9
KEPT = [0, 2, 3, 7, 8]

LOSSES = {
    "divergence": LossConfig(),
    "hot divergence": LossConfig(temperature=2.5),
    "top-1": LossConfig(label_share=1.0),
    "data": LossConfig(label_share=1.0, labels="data"),
    "mix": LossConfig(label_share=0.3, labels="data"),
    "cold mix": LossConfig(label_share=0.6, temperature=0.7),
}


@dataclass(frozen=True)
class Case:
    features: Tensor  # [T, B, P, E]
    weight: Tensor  # [D, E]
    logits: Tensor  # [B, Q, V], of the target
    truth: Truth
    scale: Tensor  # [T]
    kept: Tensor | None

    @classmethod
    def of(
        cls,
        features: Tensor,
        weight: Tensor,
        logits: Tensor,
        loss_mask: Tensor,
        next_tokens: Tensor,
        scale: Tensor,
        kept: Tensor | None = None,
    ) -> "Case":
        restricted = logits if kept is None else logits[..., kept]
        return cls(features, weight, logits, Truth(restricted, logits.argmax(-1), loss_mask, next_tokens), scale, kept)


def make_case(regime: str) -> Case:
    """Spread logits and a few rows outside the loss mask, unless `regime` changes them."""
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    positions = 1 if regime == "one position" else 4
    rows = positions + DEPTHS - 1
    kept = torch.tensor(KEPT) if regime.startswith("trimmed") else None
    features, weight = randn(DEPTHS, BATCH, positions, WIDTH), randn(VOCAB if kept is None else len(KEPT), WIDTH)
    logits, loss_mask = 2 * randn(BATCH, rows, VOCAB), torch.ones(BATCH, rows, dtype=torch.bool)
    next_tokens = torch.randint(VOCAB, (BATCH, rows), generator=generator)
    next_tokens[0, -1] = -1
    loss_mask[1, rows // 2 :] = False
    if "peaked" in regime:
        logits, weight = 40 * logits, 10 * weight
    elif regime == "flat":
        logits, weight = logits * 0, weight * 0
    elif regime == "tied":
        logits, weight, features = logits.round().clamp(-1, 1), weight.round(), features.round()
    elif regime == "ruled out":
        logits[..., ::2] = -torch.inf
    elif regime == "all invalid":
        loss_mask[:] = False
    return Case.of(features, weight, logits, loss_mask, next_tokens, torch.tensor([0.5, 0.3, 0.2]) / 7, kept)


REGIMES = ["spread", "peaked", "flat", "tied", "one position", "all invalid", "ruled out", "trimmed", "trimmed peaked"]


def by_hand(case: Case, config: LossConfig) -> tuple[list[list[Tensor]], list[int]]:
    """Losses by depth and number of equal top-1 tokens, row by row from the definitions, in fp64."""
    kept = range(VOCAB) if case.kept is None else case.kept.tolist()
    losses: list[list[Tensor]] = [[] for _ in range(DEPTHS)]
    agreements = [0] * DEPTHS
    for t in range(DEPTHS):
        for b in range(BATCH):
            for place in range(case.features.shape[2]):
                row = place + t
                if not case.truth.loss_mask[b, row]:
                    continue
                logits = [case.weight[d] @ case.features[t, b, place] for d in range(len(kept))]
                target = case.logits[b, row].tolist()
                top1 = max(range(VOCAB), key=lambda v: (target[v], -v))
                best = max(range(len(kept)), key=lambda d: (float(logits[d].detach()), -d))
                agreements[t] += kept[best] == top1
                loss = (1 - config.label_share) * divergence(logits, [target[v] for v in kept], config.temperature)
                label = top1 if config.labels == "target" else int(case.truth.next_tokens[b, row])
                if label in kept:
                    loss = loss - config.label_share * log_softmax(logits)[list(kept).index(label)]
                losses[t].append(loss)
    return losses, agreements


def divergence(logits: list[Tensor], target: list[float], temperature: float) -> Tensor:
    log_q = log_softmax([z / temperature for z in logits])
    powers = [math.exp((z - max(target)) / temperature) for z in target]
    total = torch.zeros((), dtype=torch.float64)
    for power, log in zip(powers, log_q, strict=True):
        p = power / sum(powers)
        if p > 0:
            total = total + p * (math.log(p) - log)
    return temperature**2 * total


def log_softmax(logits: list[Tensor]) -> list[Tensor]:
    highest = max(float(z.detach()) for z in logits)
    log_sum = highest + torch.log(torch.stack([torch.exp(z - highest) for z in logits]).sum())
    return [z - log_sum for z in logits]


def value_and_gradients(
    case: Case, config: LossConfig, compute: Callable[..., HeadLoss] = head_loss
) -> tuple[HeadLoss, Tensor, Tensor]:
    features, weight = case.features.clone().requires_grad_(), case.weight.clone().requires_grad_()
    result = compute(features, weight, case.truth, case.scale, config, case.kept)
    result.total.backward()
    assert features.grad is not None
    assert weight.grad is not None
    return result, features.grad, weight.grad


FORMS = [(regime, compute) for regime in REGIMES for compute in (head_loss, head_loss_reference)]
# There 0 · −inf is NaN.
FORMS.remove(("ruled out", head_loss_reference))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("regime", "compute"), FORMS)
def test_equals_the_definition_in_value_and_gradient(regime: str, compute: Callable[..., HeadLoss], loss: str) -> None:
    case, config = make_case(regime), LOSSES[loss]
    slow = replace(case, features=case.features.double().requires_grad_(), weight=case.weight.double().requires_grad_())
    losses, agreements = by_hand(slow, config)
    zero = (slow.features.sum() + slow.weight.sum()) * 0
    by_depth = [sum(terms, zero) for terms in losses]
    expected = sum((depth * scale for depth, scale in zip(by_depth, case.scale.double(), strict=True)), zero)
    expected.backward()

    result, features_grad, weight_grad = value_and_gradients(case, config, compute)
    size = max(1.0, float(slow.weight.detach().abs().max() * case.logits.nan_to_num(neginf=0).abs().max()) / 10)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-6 * size}
    torch.testing.assert_close(result.total.detach().double(), expected.detach(), **close)
    torch.testing.assert_close(result.loss.double(), torch.stack([x.detach() for x in by_depth]), **close)
    assert result.agreements.tolist() == agreements
    assert slow.features.grad is not None
    assert slow.weight.grad is not None
    torch.testing.assert_close(features_grad.double(), slow.features.grad, **close)
    torch.testing.assert_close(weight_grad.double(), slow.weight.grad, **close)
    if regime == "all invalid":
        assert not result.loss.any() and not features_grad.any() and not weight_grad.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regime", ["spread", "trimmed"])
def test_bf16_is_as_good_as_autograds(regime: str, loss: str) -> None:
    """Products in bf16 under autocast: 2 % off the fp32 gradient at most, and not worse than the straightforward form.

    bf16 keeps 8 bits; what is computed from a product is in fp32 in both forms.
    """
    case = make_case(regime)
    case = replace(case, weight=case.weight * 0.5)
    config = LOSSES[loss]
    exact, *exact_grads = value_and_gradients(case, config)
    with torch.autocast("cpu", torch.bfloat16):
        rough, *rough_grads = value_and_gradients(case, config)
        eager, *eager_grads = value_and_gradients(case, config, head_loss_reference)
    torch.testing.assert_close(rough.total, exact.total, rtol=0.01, atol=0)
    torch.testing.assert_close(rough.loss, eager.loss, rtol=1e-5, atol=1e-6)
    for ours, theirs, truth in zip(rough_grads, eager_grads, exact_grads, strict=True):
        assert ours.dtype == torch.float32
        error, eager_error = (ours - truth).norm() / truth.norm(), (theirs - truth).norm() / truth.norm()
        assert error < 0.02
        assert error < 1.5 * eager_error + 1e-3


def test_bf16_parameters() -> None:
    case = make_case("spread")
    exact, *exact_grads = value_and_gradients(case, LOSSES["mix"])
    half = replace(case, features=case.features.bfloat16(), weight=case.weight.bfloat16())
    rough, *rough_grads = value_and_gradients(half, LOSSES["mix"])
    torch.testing.assert_close(rough.total, exact.total, rtol=0.02, atol=0)
    for ours, truth in zip(rough_grads, exact_grads, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - truth).norm() < 0.03 * truth.norm()


def test_gradient_follows_what_is_made_of_the_total() -> None:
    case = make_case("spread")
    features, weight = case.features.clone().requires_grad_(), case.weight.clone().requires_grad_()
    (3 * head_loss(features, weight, case.truth, case.scale, LossConfig()).total).backward()
    _, features_grad, weight_grad = value_and_gradients(case, LossConfig())
    torch.testing.assert_close(features.grad, 3 * features_grad)
    torch.testing.assert_close(weight.grad, 3 * weight_grad)


def test_going_back_twice_is_refused() -> None:
    case = make_case("spread")
    total = head_loss(
        case.features.requires_grad_(), case.weight.requires_grad_(), case.truth, case.scale, LossConfig()
    )
    total.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.total.backward()


def test_a_weight_that_is_not_trained() -> None:
    case = make_case("spread")
    _, features_grad, _ = value_and_gradients(case, LossConfig())
    features, weight = case.features.clone().requires_grad_(), case.weight.clone()
    head_loss(features, weight, case.truth, case.scale, LossConfig()).total.backward()
    torch.testing.assert_close(features.grad, features_grad)
    assert weight.grad is None


def test_positions_that_do_not_count_are_not_computed() -> None:
    """Their features may be anything, where 0 times a gradient of NaN would be NaN."""
    case = make_case("spread")
    depths, _, positions, _ = case.features.shape
    counted = torch.stack([case.truth.terms(t, positions) for t in range(depths)])
    assert 0 < counted.sum() < counted.numel()
    features = case.features.masked_fill(~counted[..., None], torch.nan).requires_grad_()
    weight = case.weight.clone().requires_grad_()
    found = head_loss(features, weight, case.truth, case.scale, LossConfig(), case.kept)
    found.total.backward()
    assert features.grad is not None and weight.grad is not None
    expected = head_loss_reference(case.features, case.weight, case.truth, case.scale, LossConfig(), case.kept)
    torch.testing.assert_close(found.total, expected.total)
    assert not features.grad[~counted].any() and features.grad[counted].isfinite().all()
    assert weight.grad.isfinite().all()


def test_without_gradient() -> None:
    case = make_case("spread")
    expected = value_and_gradients(case, LossConfig())[0]
    with torch.no_grad():
        result = head_loss(case.features, case.weight.requires_grad_(), case.truth, case.scale, LossConfig())
    assert not result.total.requires_grad
    torch.testing.assert_close(result.total, expected.total.detach())


class _Sizes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@contextmanager
def sizes() -> Iterator[_Sizes]:
    with _Sizes() as watch:
        yield watch


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_holds_the_logits_of_all_depths(loss: str) -> None:
    depths, batch, positions, width, vocab = 6, 2, 16, 3, 50
    rows = positions + depths - 1
    case = Case.of(
        torch.randn(depths, batch, positions, width),
        torch.randn(vocab, width),
        torch.randn(batch, rows, vocab),
        torch.ones(batch, rows).bool(),
        torch.zeros(batch, rows).long(),
        torch.ones(depths),
    )
    with sizes() as ours:
        value_and_gradients(case, LOSSES[loss])
    with sizes() as theirs:
        value_and_gradients(case, LOSSES[loss], head_loss_reference)
    assert ours.largest <= 4 * batch * rows * vocab < 4 * depths * batch * positions * vocab <= theirs.largest


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"label_share": 1.1}, "label_share"),
        ({"label_share": -0.1}, "label_share"),
        ({"labels": "teacher"}, "labels"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_impossible_losses(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(LossConfig(), **change)
