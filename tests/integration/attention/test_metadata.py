# SPDX-License-Identifier: Apache-2.0
"""How a step is split into trees and causal requests."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from redrafter_vllm.integration.attention.metadata import leading_requests, trailing_requests
from tests.integration.attention.backend_steps import MIXED, common_metadata, make_builder, step_trees
from tests.integration.attention.fake_flash import flash_attention
from tests.ops.attention_steps import Request, Step
from tests.ops.devices import DEVICE


def small_step(requests: list[Request | None]) -> Step:
    return Step(requests, (1, 1), 16, torch.float16)


def test_both_parts_are_complete_steps() -> None:
    step = small_step(MIXED)
    whole, start_loc = common_metadata(step), torch.full((9,), -1, dtype=torch.int32, device=DEVICE)
    head, tail = leading_requests(whole, 4, 7), trailing_requests(whole, 4, start_loc)
    assert head.query_start_loc.tolist() == head.query_start_loc_cpu.tolist() == [0, 6, 10, 17, 19]
    assert tail.query_start_loc.tolist() == tail.query_start_loc_cpu.tolist() == [0, 1, 35, 56]
    assert tail.query_start_loc.data_ptr() == start_loc.data_ptr()
    assert (head.num_reqs, head.num_actual_tokens, head.max_query_len) == (4, 19, 7)
    assert (tail.num_reqs, tail.num_actual_tokens, tail.max_query_len) == (3, 56, 34)
    assert head.seq_lens.tolist() == [43, 4, 27, 66] and tail.seq_lens.tolist() == [22, 34, 71]
    assert (head.max_seq_len, tail.max_seq_len) == (69, 74)  # upper bounds, three more
    assert torch.equal(torch.cat((head.block_table_tensor, tail.block_table_tensor)), whole.block_table_tensor)
    assert torch.equal(tail.slot_mapping, whole.slot_mapping[19:])
    assert torch.equal(tail.positions, whole.positions[19:])
    assert len(head.is_prefilling) == 4 and len(tail.is_prefilling) == 3


@pytest.mark.parametrize(
    ("requests", "num_trees", "num_tree_tokens", "has_causal"),
    [
        ([(9, 0, 0), (0, 30, 0)], None, 0, True),  # no request has drafts
        ([(9, 0, 5), (9, 0, 0), (0, 3, 0)], 3, 11, False),  # short queries join the trees
        ([(9, 0, 5), (9, 0, 2), (9, 0, 0), (0, 30, 0)], 2, 9, True),  # a long one separates them
        ([(9, 0, 5), (9, 4, 4)], 2, 15, False),  # prompt tokens before drafts
    ],
)
def test_the_number_of_tree_requests(
    requests: list[Request | None], num_trees: int | None, num_tree_tokens: int, has_causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    flash_attention(monkeypatch, (8, 0))
    step = small_step(requests)
    metadata: Any = make_builder("flash", step).build(0, common_metadata(step), trees=step_trees(step))
    assert (None if metadata.trees is None else len(metadata.trees.seq_lens)) == num_trees
    assert metadata.num_tree_tokens == num_tree_tokens
    assert (metadata.causal is not None) == has_causal


def test_trees_that_the_device_has_trimmed_beside_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 and 0 drafts remain of 5 each; the host has an even share of the tokens, and the drafts that were scheduled."""
    flash_attention(monkeypatch, (8, 0))
    step = small_step([(9, 0, 5), (9, 0, 0), (0, 30, 0)])
    even = torch.tensor([0, 4, 7, 38], dtype=torch.int32)
    trees = step_trees(step)
    trees = dataclasses.replace(trees, num_drafts_np=np.array([5, 5, 0]), query_lens_np=np.array([6, 6, 31]))
    metadata: Any = make_builder("flash", step).build(
        0, common_metadata(step).replace(query_start_loc_cpu=even), trees=trees
    )
    assert metadata.num_tree_tokens == 7 and metadata.trees.query_start_loc.tolist() == [0, 6, 7]
    assert metadata.trees.max_query_len == 6 and metadata.context.seq_lens.tolist() == [9, 9]
    assert metadata.causal.query_start_loc.tolist() == [0, 31]
