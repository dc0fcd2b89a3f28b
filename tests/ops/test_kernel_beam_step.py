# SPDX-License-Identifier: Apache-2.0
"""The beam step's kernels against a stable sort of all continuations in fp64."""

import math

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops.beam_step import BeamStep, reference
from redrafter_vllm.ops.beam_step import kernel as kernels
from tests.ops.devices import DEVICE, runs_kernels
from tests.ops.poison import poison_empty

pytestmark = runs_kernels
# Sums of up to thousands of fp32 terms, added in another order.
TOLERANCE = {"atol": 2e-6, "rtol": 2e-6}


def oracle(logits: Tensor, scores: Tensor, top_k: int | None) -> list[list[tuple[float, int, int]]]:
    """(score, parent, token) of each new beam, with Python's sort."""
    result = []
    for row, beam_scores in zip(logits.double().tolist(), scores.tolist(), strict=True):
        grown = []
        for parent, (beam, score) in enumerate(zip(row, beam_scores, strict=True)):
            threshold = sorted(beam, reverse=True)[min(top_k, len(beam)) - 1] if top_k else -math.inf
            log_total = math.log(sum(math.exp(x - max(beam)) for x in beam if x >= threshold)) + max(beam)
            grown += [(score + x - log_total, parent, token) for token, x in enumerate(beam) if x >= threshold]
        result.append(sorted(grown, key=lambda one: -one[0])[: scores.shape[1]])
    return result


def logits_of(seed: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype).to(DEVICE)


def scores_of(seed: int, batch: int, width: int) -> Tensor:
    scores = torch.rand(batch, width, generator=torch.Generator().manual_seed(seed)) * -4
    return scores.sort(-1, descending=True).values.to(DEVICE)


def assert_equal_steps(step: BeamStep, expected: BeamStep) -> None:
    assert [field.dtype for field in step] == [field.dtype for field in expected]
    assert torch.equal(step.parents, expected.parents)
    assert torch.equal(step.tokens, expected.tokens)
    torch.testing.assert_close(step.scores, expected.scores, **TOLERANCE)


@pytest.mark.parametrize("implementation", [reference, kernels], ids=["reference", "kernel"])
@pytest.mark.parametrize("top_k", [None, 5, 40])
@pytest.mark.parametrize(("width", "vocab"), [(1, 5), (3, 37), (5, 70)])
def test_against_sorting_every_continuation(
    implementation: object, width: int, vocab: int, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_TILE", 16)
    poison_empty(monkeypatch)
    logits, scores = logits_of(width, (2, width, vocab), torch.float32), scores_of(vocab, 2, width)
    step = implementation.beam_step(logits, scores, top_k)
    for row, expected in enumerate(oracle(logits, scores, top_k)):
        expected_scores, parents, tokens = (list(field) for field in zip(*expected, strict=True))
        assert step.parents[row].tolist() == parents
        assert step.tokens[row].tolist() == tokens
        torch.testing.assert_close(step.scores[row].tolist(), expected_scores, **TOLERANCE)


@pytest.mark.parametrize(
    ("batch", "width", "vocab", "top_k", "dtype"),
    [
        (0, 4, 50, None, torch.float32),
        (2, 4, 999, None, torch.bfloat16),
        (2, 4, 999, None, torch.float16),
        (1, 3, 999, 50, torch.bfloat16),
        (1, 2, 5000, None, torch.bfloat16),
        pytest.param(1, 64, 130, None, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_against_the_reference(
    batch: int, width: int, vocab: int, top_k: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-bit logits hold many equal values: indices must be the same throughout."""
    monkeypatch.setattr(kernels, "_TILE", 1024 if vocab > 1024 else 256)
    poison_empty(monkeypatch)
    logits, scores = logits_of(width, (batch, width, vocab), dtype), scores_of(vocab, batch, width)
    assert_equal_steps(kernels.beam_step(logits, scores, top_k), reference.beam_step(logits, scores, top_k))


@pytest.mark.parametrize("top_k", [None, 3, 6])
def test_equal_values_go_to_the_better_beam_and_the_lower_token(
    top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_TILE", 16)
    width, vocab = 3, 70
    values = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 2.0], device=DEVICE)
    chosen = torch.randint(5, (4, width, vocab), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits = values[chosen]
    logits[0] = 1.0
    logits[1, 0] = -math.inf
    logits[1, 0, 40] = -7.0
    scores = torch.zeros(4, width, device=DEVICE)
    scores[:, 1:] = torch.tensor([0.0, -math.inf], device=DEVICE)
    scores[3] = 0.0
    step, expected = kernels.beam_step(logits, scores, top_k), reference.beam_step(logits, scores, top_k)
    assert_equal_steps(step, expected)
    assert step.tokens[0].tolist() == [0, 1, 2]
    assert step.parents[0].tolist() == [0, 0, 0]


def test_first_step_has_one_live_beam() -> None:
    logits, scores = logits_of(0, (2, 4, 21), torch.float32), torch.full((2, 4), -math.inf, device=DEVICE)
    scores[:, 0] = 0.0
    for step in (kernels.beam_step(logits, scores), kernels.beam_step(logits, None), reference.beam_step(logits, None)):
        assert not step.parents.any()
        assert torch.equal(step.tokens, logits[:, 0].sort(descending=True, stable=True).indices[:, :4])
        log_probs = logits[:, 0].log_softmax(-1).sort(descending=True).values[:, :4]
        torch.testing.assert_close(step.scores, log_probs, **TOLERANCE)


def test_ids_of_a_draft_vocabulary() -> None:
    logits, scores = logits_of(4, (2, 3, 40), torch.float32), scores_of(3, 2, 3)
    offsets = torch.arange(40, device=DEVICE) ** 2
    plain = reference.beam_step(logits, scores)
    for step in (reference.beam_step(logits, scores, None, offsets), kernels.beam_step(logits, scores, None, offsets)):
        assert_equal_steps(step, plain._replace(tokens=plain.tokens + plain.tokens**2))


def test_strided_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a vocabulary that was padded: the padding is never read."""
    monkeypatch.setattr(kernels, "_TILE", 32)
    padded = torch.full((2, 3, 80), math.nan, device=DEVICE)
    padded[..., :70] = logits_of(2, (2, 3, 70), torch.float32)
    scores = scores_of(1, 2, 3)
    step = kernels.beam_step(padded[..., :70], scores)
    assert_equal_steps(step, reference.beam_step(padded[..., :70].contiguous(), scores))


@pytest.mark.parametrize("top_k", [None, 5])
def test_indices_stay_in_range_for_nan(top_k: int | None) -> None:
    logits = logits_of(3, (3, 2, 40), torch.float32)
    logits[0] = math.nan
    logits[1, 0, 7] = -math.nan
    logits[2] = -math.inf
    step = kernels.beam_step(logits, scores_of(1, 3, 2), top_k)
    assert ((step.tokens >= 0) & (step.tokens < 40) & (step.parents >= 0) & (step.parents < 2)).all()


@pytest.mark.parametrize(("width", "vocab", "top_k"), [(65, 100, None), (4, 100, 65), (4, 2**18 + 1, None), (4, 3, 4)])
def test_sizes_beyond_the_kernel(width: int, vocab: int, top_k: int | None) -> None:
    logits = torch.zeros(1, 1, 1, device=DEVICE).expand(1, width, vocab)
    assert not kernels.supports(logits, None, top_k)
    with pytest.raises(ValueError, match="the kernel takes up to 64 beams"):
        kernels.beam_step(logits, torch.zeros(1, width, device=DEVICE), top_k)
