# SPDX-License-Identifier: Apache-2.0
"""The kernels of tree attention against their references, over types, sizes, and kinds of batches."""

import math

import pytest
import torch

from redrafter_vllm.ops.tree_attention import TreeBatch, reference
from redrafter_vllm.ops.tree_attention import kernel as kernels
from tests.ops.attention_steps import MIXED, Step
from tests.ops.devices import DEVICE, runs_kernels
from tests.ops.poison import poison_empty

pytestmark = runs_kernels


@pytest.mark.parametrize(
    ("heads", "head_size", "dtype", "block_size", "num_splits"),
    [
        ((2, 2), 64, torch.float32, 16, 1),
        ((6, 2), 80, torch.float32, 48, 3),
        ((16, 1), 96, torch.float16, 16, 2),
        ((4, 1), 112, torch.bfloat16, 32, 5),
        ((2, 1), 128, torch.bfloat16, 256, 1),
        ((1, 1), 256, torch.float16, 16, 2),
    ],
)
def test_mixed_batches(
    heads: tuple[int, int], head_size: int, dtype: torch.dtype, block_size: int, num_splits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    step = Step(MIXED, heads, head_size, dtype, block_size)
    expected = reference.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    poison_empty(monkeypatch)
    out = kernels.tree_attention(
        step.query, step.cache, step.batch, step.scale, out=step.poisoned_out(), num_splits=num_splits
    )
    step.check(out, expected)


@pytest.mark.parametrize(("context", "num_drafts", "num_splits"), [(0, 128, 1), (130, 128, 2), (700, 1, 7)])
def test_full_trees_and_long_contexts(context: int, num_drafts: int, num_splits: int) -> None:
    step = Step([(context, 0, num_drafts)], (1, 1), 64, torch.bfloat16, 64)
    expected = reference.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    out = kernels.tree_attention(
        step.query, step.cache, step.batch, step.scale, out=step.poisoned_out(), num_splits=num_splits
    )
    step.check(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_cache(dtype: torch.dtype) -> None:
    step = Step(MIXED, (4, 2), 64, dtype, cache_dtype=torch.float8_e4m3fn)
    scales = torch.tensor(1.7, device=DEVICE), torch.tensor(0.4, device=DEVICE)
    expected = reference.tree_attention(
        step.query, step.cache, step.batch, step.scale, *scales, out=step.poisoned_out()
    )
    out = kernels.tree_attention(
        step.query, step.cache, step.batch, step.scale, *scales, out=step.poisoned_out(), num_splits=2
    )
    step.check(out, expected)


@pytest.mark.parametrize(("heads", "head_size", "block_size"), [((16, 1), 128, 256), ((3, 3), 80, 16)])
def test_fp8_query(heads: tuple[int, int], head_size: int, block_size: int) -> None:
    """Some kernels of the context need one and write their part in bf16."""
    step = Step(MIXED, heads, head_size, torch.bfloat16, block_size, cache_dtype=torch.float8_e4m3fn)
    q_scale, k_scale, v_scale = (torch.tensor(x, device=DEVICE) for x in (0.02, 1.7, 0.4))
    query, out = (step.query / q_scale).to(torch.float8_e4m3fn), step.poisoned_out()
    context, log_sum = reference.attend_context(
        query.float() * q_scale, step.cache, step.batch, step.scale, k_scale, v_scale
    )
    arguments = query, step.cache, step.batch, context.bfloat16(), log_sum, step.scale, k_scale, v_scale
    merged = kernels.attend_nodes(*arguments, out, q_scale)
    whole = reference.attend_nodes(*arguments, step.poisoned_out(), q_scale)
    step.check(merged, whole)
    exact = reference.tree_attention(
        query.float() * q_scale, step.cache, step.batch, step.scale, k_scale, v_scale, step.poisoned_out().float()
    )
    step.check(merged, exact)


def test_slots_before_heads() -> None:
    """The cache's dimensions may have another order in memory."""
    step = Step(MIXED, (4, 2), 64, torch.float16)
    wanted = reference.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    step.cache = step.cache.transpose(1, 2).contiguous().transpose(1, 2)
    out = kernels.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    step.check(out, wanted)


def test_every_byte_of_an_fp8_cache() -> None:
    """With one key per request the output is its value, for every e4m3 number."""
    numbers = torch.arange(256, dtype=torch.uint8)
    numbers = numbers[~numbers.view(torch.float8_e4m3fn).float().isnan()]
    values = torch.nn.functional.pad(numbers, (0, 256 - len(numbers)))
    cache = torch.cat((torch.zeros_like(values), values)).view(1, 1, 1, 512).to(DEVICE)
    one, none = torch.ones(1, dtype=torch.int32, device=DEVICE), torch.zeros(1, 0, 0, dtype=torch.bool, device=DEVICE)
    batch = TreeBatch(torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.arange(2, device=DEVICE).int(), one,
                      none, one - 1, 1)  # fmt: skip
    query = torch.ones(1, 1, 256, dtype=torch.bfloat16, device=DEVICE)
    out = kernels.tree_attention(query, cache, batch, 1.0)
    assert torch.equal(out[0, 0].float().cpu(), values.view(torch.float8_e4m3fn).float())


def test_parts_of_the_context() -> None:
    """The kernels and their references may be combined; an empty part is minus or plus infinity."""
    step = Step([(40, 0, 3), (0, 0, 2)], (2, 1), 32, torch.float32)
    arguments = step.query, step.cache, step.batch
    context, log_sum = reference.attend_context(*arguments, step.scale)
    whole = reference.tree_attention(*arguments, step.scale, out=step.poisoned_out())
    log_sum[log_sum.isinf()] = math.inf
    padded = torch.full((2, *context.shape[1:]), math.nan, device=DEVICE)
    padded[1] = context[0]
    padded_log_sum = torch.cat((torch.full_like(log_sum, -math.inf), log_sum))
    padded[1, step.starts[1] :] = math.nan
    merged = kernels.attend_nodes(*arguments, padded, padded_log_sum, step.scale, out=step.poisoned_out())
    step.check(merged, whole)
    parts = kernels.attend_context(*arguments, step.scale, num_splits=4)
    step.check(reference.attend_nodes(*arguments, *parts, step.scale, out=step.poisoned_out()), whole)


def test_no_requests() -> None:
    step = Step([None, None], (2, 1), 32, torch.float32)
    out = kernels.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    assert (out == -777).all()


def test_unfit_arguments() -> None:
    step = Step([(4, 0, 2)], (2, 1), 16, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.tree_attention(step.query[..., :8], step.cache, step.batch, 1.0)
    with pytest.raises(ValueError, match="of the same type"):
        kernels.tree_attention(step.query.half(), step.cache, step.batch, 1.0)
    with pytest.raises(ValueError, match="takes no FP8 query"):
        kernels.tree_attention(step.query.to(torch.float8_e4m3fn), step.cache, step.batch, 1.0)
    with pytest.raises(ValueError, match="must be contiguous"):
        kernels.tree_attention(step.query.transpose(1, 2).contiguous().transpose(1, 2), step.cache, step.batch, 1.0)
