# SPDX-License-Identifier: Apache-2.0
"""Tree attention against dense attention over the gathered keys of each row."""

import pytest
import torch

from redrafter_vllm.ops.tree_attention import TreeBatch, query_visibility, reference
from tests.ops.attention_steps import MIXED, Step, ancestor_matrix, dense_row, visible_slots


def test_more_columns_than_keys_stay_hidden() -> None:
    """The host may know only an upper bound of the length; keys beyond the length are never seen."""
    parents = [-1, -1, 0]
    exact = query_visibility(4, 10, torch.tensor(10), ancestor_matrix(parents))
    padded = query_visibility(4, 16, torch.tensor(10), ancestor_matrix(parents))
    assert torch.equal(padded[:, :10], exact)
    assert not padded[:, 10:].any()


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_a_whole_step_against_dense_attention(heads: tuple[int, int]) -> None:
    step = Step(MIXED, heads, 20, torch.float32)
    out = reference.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    for index, query_len in enumerate(step.query_lens):
        for row in range(query_len):
            slots = visible_slots(query_len, step.seq_lens[index], step.parents[index], row)
            for head in range(heads[0]):
                entry = step.entries[index][slots, head * heads[1] // heads[0]]
                at = step.starts[index] + row
                expected = dense_row(step.query[at, head].cpu(), *entry.chunk(2, dim=-1))
                torch.testing.assert_close(out[at, head].double().cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"num_drafts": 3}, {"query_start_loc": 2}, {"block_table": 1}])
def test_a_batch_of_unequal_rows(change: dict[str, int]) -> None:
    step = Step([(4, 0, 2), (1, 0, 0)], (1, 1), 16, torch.float32)
    fields = vars(step.batch) | {name: getattr(step.batch, name).new_zeros(n) for name, n in change.items()}
    with pytest.raises(ValueError, match="must have"):
        TreeBatch(**fields)
