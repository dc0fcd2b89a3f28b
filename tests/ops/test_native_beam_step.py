# SPDX-License-Identifier: Apache-2.0
"""The C++ beam step against a stable sort of all continuations, and against plain torch."""

import math

import pytest
import torch

from redrafter_vllm.ops.beam_step import native, reference
from tests.ops.native import needs_compiler
from tests.ops.test_kernel_beam_step import TOLERANCE, assert_equal_steps, logits_of, oracle, scores_of

pytestmark = [needs_compiler, pytest.mark.skipif(torch.cuda.is_available(), reason="the helpers put tensors on a GPU")]


@pytest.mark.parametrize(("width", "vocab"), [(1, 5), (3, 37), (5, 70), (4, 64), (2, 129)])
def test_against_sorting_every_continuation(width: int, vocab: int) -> None:
    logits, scores = logits_of(width, (2, width, vocab), torch.float32), scores_of(vocab, 2, width)
    step = native.beam_step(logits, scores)
    for row, expected in enumerate(oracle(logits, scores, None)):
        expected_scores, parents, tokens = (list(field) for field in zip(*expected, strict=True))
        assert step.parents[row].tolist() == parents
        assert step.tokens[row].tolist() == tokens
        torch.testing.assert_close(step.scores[row].tolist(), expected_scores, **TOLERANCE)


@pytest.mark.parametrize(
    ("batch", "width", "vocab", "dtype"),
    [(0, 4, 50, torch.float32), (2, 4, 999, torch.bfloat16), (3, 2, 8192, torch.bfloat16), (1, 64, 130, torch.float32)],
)
def test_against_plain_torch(batch: int, width: int, vocab: int, dtype: torch.dtype) -> None:
    """16-bit logits hold many equal values: indices must be the same throughout."""
    logits, scores = logits_of(width, (batch, width, vocab), dtype), scores_of(vocab, batch, width)
    assert native.supports(logits, scores)
    assert_equal_steps(native.beam_step(logits, scores), reference.beam_step(logits, scores))
    assert_equal_steps(native.beam_step(logits, None), reference.beam_step(logits, None))


def test_equal_values_go_to_the_better_beam_and_the_lower_token() -> None:
    width, vocab = 3, 70
    values = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 2.0])
    logits = values[torch.randint(5, (4, width, vocab), generator=torch.Generator().manual_seed(1))]
    logits[0] = 1.0
    logits[1, 0] = -math.inf
    logits[1, 0, 40] = -7.0
    scores = torch.tensor([[0.0, 0.0, -math.inf]] * 3 + [[0.0, 0.0, 0.0]])
    step = native.beam_step(logits, scores)
    assert_equal_steps(step, reference.beam_step(logits, scores))
    assert step.tokens[0].tolist() == [0, 1, 2]
    assert step.parents[0].tolist() == [0, 0, 0]


def test_ids_of_a_draft_vocabulary_and_strided_logits() -> None:
    padded = torch.full((2, 3, 80), math.nan)
    padded[..., :70] = logits_of(2, (2, 3, 70), torch.float32)
    scores, offsets = scores_of(1, 2, 3), torch.arange(70) ** 2
    step = native.beam_step(padded[..., :70], scores, None, offsets)
    assert_equal_steps(step, reference.beam_step(padded[..., :70].contiguous(), scores, None, offsets))


def test_indices_stay_in_range_for_nan() -> None:
    logits = logits_of(3, (3, 2, 40), torch.float32)
    logits[0] = math.nan
    logits[1, 0, 7] = -math.nan
    logits[2] = -math.inf
    step = native.beam_step(logits, scores_of(1, 3, 2))
    assert ((step.tokens >= 0) & (step.tokens < 40) & (step.parents >= 0) & (step.parents < 2)).all()


def test_what_the_kernel_leaves_to_torch() -> None:
    logits = torch.zeros(1, 2, 8)
    assert native.supports(logits, None)
    assert not native.supports(logits, None, 4)
    assert not native.supports(logits.half(), None)
    assert not native.supports(torch.zeros(1, 65, 100), None)
    assert not native.supports(torch.zeros(1, 2, 16)[..., ::2], None)


def test_scores_do_not_depend_on_the_default_type() -> None:
    """While vLLM loads a model the default is the model's type."""
    logits, scores = logits_of(1, (2, 3, 50), torch.bfloat16), scores_of(1, 2, 3)
    expected = reference.beam_step(logits, scores)
    torch.set_default_dtype(torch.bfloat16)
    try:
        step = native.beam_step(logits, scores)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal_steps(step, expected)
