# SPDX-License-Identifier: Apache-2.0
"""The stand-ins for the kernels that prepare and end a step write what the interpreted kernels write, and no more."""

from __future__ import annotations

from inspect import signature
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.tools.cpu_support.interpreted import assert_same_bits, both_ways, needs_interpreter, poisoned, vllm_gpu

pytestmark = needs_interpreter

REQUESTS, MODEL_LEN = 9, 1500
INT32 = torch.int32

# One batch: a first chunk, a last chunk, a whole prompt, two decodes, one with three drafts, a request without a row.
MAPPING = torch.tensor([4, 0, 7, 2, 8, 3])
QUERY_LENS = torch.tensor([1100, 3, 5, 1, 4, 1])
QUERY_STARTS = torch.cat([torch.zeros(1, dtype=INT32), QUERY_LENS.cumsum(0).to(INT32)])
NUM_TOKENS = int(QUERY_STARTS[-1])
PREFILL_LENS = torch.tensor([6, 1, 10, 1, 1400, 1, 1, 5, 3], dtype=INT32)
COMPUTED = torch.tensor([3, 0, 12, 1, 0, 0, 0, 0, 8], dtype=INT32)
SEQ_LENS = (COMPUTED[MAPPING] + QUERY_LENS).to(INT32)
CU_LOGITS = torch.tensor([0, 1, 2, 3, 4, 8, 9], dtype=INT32)


def tokens_of_requests() -> torch.Tensor:
    return torch.arange(REQUESTS * MODEL_LEN, dtype=INT32).reshape(REQUESTS, MODEL_LEN) % 997


@pytest.fixture(scope="module")
def input_batch() -> ModuleType:
    return vllm_gpu("input_batch")


@pytest.mark.parametrize("lookahead", [1, 3])
def test_prepare_prefill_inputs(input_batch: ModuleType, lookahead: int) -> None:
    ours, theirs = both_ways(
        input_batch,
        "_prepare_prefill_inputs_kernel",
        input_batch.prepare_prefill_inputs,
        poisoned(NUM_TOKENS + 7, dtype=INT32),
        poisoned(lookahead, REQUESTS, dtype=INT32),
        MAPPING,
        QUERY_STARTS,
        tokens_of_requests(),
        PREFILL_LENS,
        COMPUTED,
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_prepare_pos_seq_lens(input_batch: ModuleType, rows: int) -> None:
    ours, theirs = both_ways(
        input_batch,
        "_prepare_pos_seq_lens_kernel",
        input_batch.prepare_pos_seq_lens,
        MAPPING[:rows],
        QUERY_STARTS,
        COMPUTED,
        poisoned(NUM_TOKENS + 7, dtype=torch.int64),
        poisoned(REQUESTS, dtype=INT32),
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("new_tokens", [0, 1])
@pytest.mark.parametrize("drafts", [4, 6])
def test_combine_sampled_and_draft_tokens(input_batch: ModuleType, new_tokens: int, drafts: int) -> None:
    ours, theirs = both_ways(
        input_batch,
        "_combine_sampled_and_draft_tokens_kernel",
        input_batch.combine_sampled_and_draft_tokens,
        poisoned(NUM_TOKENS + 7, dtype=INT32),
        MAPPING,
        torch.arange(REQUESTS) + 100,
        QUERY_STARTS,
        SEQ_LENS,
        PREFILL_LENS,
        torch.arange(REQUESTS * drafts).reshape(REQUESTS, drafts) + 500,
        CU_LOGITS,
        int(CU_LOGITS[-1]),
        new_tokens,
    )
    assert_same_bits(ours, theirs)


def test_get_num_sampled_and_rejected(input_batch: ModuleType) -> None:
    ours, theirs = both_ways(
        input_batch,
        "_get_num_sampled_and_rejected_kernel",
        input_batch.get_num_sampled_and_rejected,
        torch.tensor([1, 1, 1, 1, 2, 1], dtype=INT32),
        SEQ_LENS,
        CU_LOGITS,
        MAPPING,
        PREFILL_LENS,
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("with_counts", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
def test_post_update(input_batch: ModuleType, with_counts: bool, with_starts: bool) -> None:
    sampled = torch.tensor([[1, 0, 0, 0], [9, 9, 9, 0], [5, 6, 5, 6], [0, 1, 2, 3], [8, 0, 0, 0], [7, 7, 0, 0]])
    ours, theirs = both_ways(
        input_batch,
        "_post_update_kernel",
        input_batch.post_update,
        torch.tensor([4, 0, -1, 2, 8, 3]),
        COMPUTED,
        poisoned(REQUESTS, dtype=torch.int64),
        torch.arange(REQUESTS * 10, dtype=INT32).reshape(REQUESTS, 10) if with_counts else None,
        sampled,
        torch.tensor([0, 3, 4, 4, 1, 2], dtype=INT32),
        torch.tensor([0, 0, 0, 0, 3, 0], dtype=INT32),
        QUERY_STARTS if with_starts else None,
        poisoned(REQUESTS, MODEL_LEN, dtype=INT32),
        COMPUTED + 2,
    )
    assert_same_bits(ours, theirs)


def test_post_update_with_draft_tokens(input_batch: ModuleType) -> None:
    if "draft_tokens" not in signature(input_batch.post_update).parameters:
        pytest.skip("vLLM 0.32 writes the draft tokens elsewhere")
    ours, theirs = both_ways(
        input_batch,
        "_post_update_kernel",
        input_batch.post_update,
        torch.tensor([4, 0, -1, 2, 8, 3]),
        COMPUTED,
        poisoned(REQUESTS, dtype=torch.int64),
        None,
        torch.arange(24).reshape(6, 4),
        torch.tensor([0, 3, 4, 4, 1, 2], dtype=INT32),
        torch.tensor([0, 0, 0, 0, 3, 0], dtype=INT32),
        QUERY_STARTS,
        poisoned(REQUESTS, MODEL_LEN, dtype=INT32),
        COMPUTED + 2,
        torch.arange(100, 118).reshape(6, 3),
        poisoned(REQUESTS, 3, dtype=torch.int64),
    )
    assert_same_bits(ours, theirs)


def test_post_update_num_computed_tokens(input_batch: ModuleType) -> None:
    ours, theirs = both_ways(
        input_batch,
        "_post_update_num_computed_tokens_kernel",
        input_batch.post_update_num_computed_tokens,
        MAPPING,
        COMPUTED,
        QUERY_STARTS,
    )
    assert_same_bits(ours, theirs)


def test_expand_idx_mapping(input_batch: ModuleType) -> None:
    bounds = torch.tensor([0, 1, 1, 6, 9, 9, 10], dtype=INT32)  # empty rows too
    ours, theirs = both_ways(
        input_batch, "_expand_idx_mapping_kernel", input_batch.expand_idx_mapping, MAPPING, 10, bounds, 5
    )
    assert_same_bits(ours, theirs)


BLOCK_SIZES, ROW_WIDTHS = (16, 48), (1100, 40)


def block_tables(enabled: list[bool], **options: Any) -> Any:
    tables = vllm_gpu("block_table").BlockTables(
        list(BLOCK_SIZES),
        REQUESTS,
        1200,
        list(ROW_WIDTHS),
        torch.device("cpu"),
        slot_mapping_enabled=enabled,
        **options,
    )
    for group, width in enumerate(ROW_WIDTHS):
        tables.block_tables[group].gpu.copy_(torch.arange(REQUESTS * width).reshape(REQUESTS, width) * 3)
        tables.input_block_tables[group].fill_(-777)
    tables.num_blocks.np[:] = torch.arange(2 * REQUESTS).reshape(2, REQUESTS) * 2
    tables.num_blocks.np[0, 2] = 1050
    tables.num_blocks.copy_to_uva()
    tables.slot_mappings.fill_(-777)
    return tables


@pytest.mark.parametrize(("rows", "padded_rows"), [(1, 1), (4, 6), (6, 9)])
def test_gather_block_tables(rows: int, padded_rows: int) -> None:
    def gather() -> list[torch.Tensor]:
        tables = block_tables([True, True])
        tables.gather_block_tables(MAPPING[:rows], padded_rows)
        return tables.input_block_tables

    ours, theirs = both_ways(vllm_gpu("block_table"), "_gather_block_tables_kernel", gather)
    assert_same_bits(ours, theirs)


def test_gather_block_tables_leaves_out_what_a_window_has_passed() -> None:
    module = vllm_gpu("block_table")
    if "sliding_window_reach" not in signature(module.BlockTables).parameters:
        pytest.skip("vLLM 0.32 gathers all blocks")

    def gather() -> list[torch.Tensor]:
        tables = block_tables([True, True], sliding_window_reach=[0, 100])
        tables.num_blocks.np[1, :] = torch.tensor([3, 40, 2, 0, 5, 1, 9, 39, 4])
        tables.num_blocks.copy_to_uva()
        computed = torch.tensor([99, 500, 250, 30, 148, 0, 600, 1950, 147], dtype=INT32)
        tables.gather_block_tables(MAPPING, 8, num_computed_tokens=computed)
        return tables.input_block_tables

    ours, theirs = both_ways(module, "_gather_block_tables_kernel", gather)
    assert_same_bits(ours, theirs)
    assert ours[-1][1][0, 0] == 0 != ours[-1][1][0, 1]  # request 4: 48 of its tokens, one block, have been passed


@pytest.mark.parametrize("enabled", [[True, True], [True, False]])
@pytest.mark.parametrize("missing", [False, True])
def test_compute_slot_mappings(enabled: list[bool], missing: bool) -> None:
    mapping = MAPPING.clone()
    if missing:
        mapping[2] = -1
    positions = poisoned(NUM_TOKENS + 9, dtype=torch.int64)
    for row, request in enumerate(MAPPING.tolist()):
        start, end = int(QUERY_STARTS[row]), int(QUERY_STARTS[row + 1])
        positions[start:end] = torch.arange(end - start) + int(COMPUTED[request])

    def compute() -> torch.Tensor:
        tables = block_tables(enabled)
        tables.compute_slot_mappings(mapping, QUERY_STARTS, positions, 1150)
        return tables.slot_mappings

    ours, theirs = both_ways(vllm_gpu("block_table"), "_compute_slot_mappings_kernel", compute)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", [INT32, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(REQUESTS,), (REQUESTS, 2100)])
def test_apply_write(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = vllm_gpu("buffer_utils")

    def write() -> torch.Tensor:
        staged = module.StagedWriteTensor(shape, dtype, torch.device("cpu"))
        staged.gpu.fill_(-777)
        if len(shape) == 1:
            for index in (3, 0, 8):
                staged.stage_write_elem(index, index + 50)
        else:
            staged.stage_write(4, 7, list(range(1, 2050)))
            staged.stage_write(0, 0, [5])
            staged.stage_write(4, 9, [91, 92])  # over the first: the later write wins
            staged.stage_write(8, 2099, [6])
        staged.apply_write()
        return staged.gpu

    ours, theirs = both_ways(module, "_apply_write_kernel", write)
    assert_same_bits(ours, theirs)
