# SPDX-License-Identifier: Apache-2.0
"""Gathering inputs and storing trees of a round: by hand, and kernels against references."""

import random

import pytest
import torch

from redrafter_vllm.ops.draft_inputs import StoredTrees
from redrafter_vllm.ops.draft_round import RoundInputs, RoundSource, reference
from tests.ops.devices import DEVICE, assert_equal, poisoned, runs_kernels

PADDING_ROW = 6


def buffers(size: int, hidden_size: int, dtype: torch.dtype) -> RoundInputs:
    ids = [poisoned(size, dtype=torch.int64) for _ in range(4)]
    return RoundInputs(poisoned(size, hidden_size, dtype=dtype), *ids)


def source_of(num_reqs: int, hidden_size: int, dtype: torch.dtype, *, walked: bool) -> RoundSource:
    rng = random.Random(num_reqs)
    hidden = torch.randn(5 * num_reqs + 1, hidden_size + 3, generator=torch.Generator().manual_seed(1))[:, :hidden_size]
    values = dict(
        root_token=[5 * n for n in range(num_reqs)],
        leaf=[rng.randrange(5) for _ in range(num_reqs)] if walked else None,
        idx_mapping=rng.sample(range(PADDING_ROW), num_reqs),
        last_sampled=[[rng.randrange(2**40)] for _ in range(PADDING_ROW)],
        num_sampled=[rng.randrange(3) for _ in range(num_reqs)],
        beam_limit=[rng.randint(1, 5) for _ in range(PADDING_ROW + 1)],
        node_limit=[rng.choice([0, 5, 99]) for _ in range(PADDING_ROW + 1)],
    )
    tensors = {name: None if value is None else torch.tensor(value, device=DEVICE) for name, value in values.items()}
    # torch.tensor([]) is of floats.
    for name, kind in (("root_token", torch.int64), ("idx_mapping", torch.int64), ("num_sampled", torch.int32)):
        tensors[name] = tensors[name].to(kind)
    if walked:
        tensors["leaf"] = tensors["leaf"].long()
    return RoundSource(hidden=hidden.to(dtype).to(DEVICE), **tensors)


def test_inputs_by_hand() -> None:
    """Two requests in a round of three: the second is in the middle of its prompt and has nothing to draft from."""
    source = RoundSource(
        hidden=torch.arange(10.0, device=DEVICE)[:, None] * torch.tensor([1.0, 100.0], device=DEVICE),
        root_token=torch.tensor([2, 9], device=DEVICE),
        leaf=torch.tensor([3, 0], device=DEVICE),
        idx_mapping=torch.tensor([4, 1], device=DEVICE),
        last_sampled=torch.tensor([[0], [71], [0], [0], [74], [0]], device=DEVICE),
        num_sampled=torch.tensor([2, 0], device=DEVICE),
        beam_limit=torch.tensor([4, 1, 4, 4, 3, 4, 4], device=DEVICE),
        node_limit=torch.tensor([9, 9, 9, 9, 5, 9, 9], device=DEVICE),
    )
    out = buffers(3, 2, torch.float32)
    reference.round_inputs(out, source, node_budget=7, num_stored=2, padding_row=PADDING_ROW)
    assert out.context.tolist() == [[5.0, 500.0], [9.0, 900.0], [0.0, 0.0]]
    assert out.roots.tolist() == [74, 71, 0]
    assert out.rows.tolist() == [4, 1, PADDING_ROW]
    assert out.node_budget.tolist() == [5, 0, 0]
    assert out.beam_limit.tolist() == [3, 1, 1]
    reference.round_inputs(out, source, node_budget=4, num_stored=0, padding_row=PADDING_ROW)
    assert out.rows.tolist() == [PADDING_ROW] * 3
    assert out.node_budget.tolist() == [4, 0, 0]


@runs_kernels
@pytest.mark.parametrize("walked", [True, False])
@pytest.mark.parametrize(
    ("num_reqs", "size", "hidden_size", "dtype"),
    [
        (1, 1, 7, torch.float32),
        (3, 3, 1500, torch.bfloat16),
        (5, 8, 64, torch.bfloat16),
        (0, 2, 33, torch.float16),
        (0, 0, 8, torch.float32),
    ],
)
def test_inputs_against_reference(walked: bool, num_reqs: int, size: int, hidden_size: int, dtype: torch.dtype) -> None:
    from redrafter_vllm.ops.draft_round import kernel

    source = source_of(num_reqs, hidden_size, dtype, walked=walked)
    for num_stored, node_budget in ((num_reqs, 16), (0, 1)):
        wanted, mine = buffers(size, hidden_size, dtype), buffers(size, hidden_size, dtype)
        reference.round_inputs(wanted, source, node_budget, num_stored, PADDING_ROW)
        kernel.round_inputs(mine, source, node_budget, num_stored, PADDING_ROW)
        for one, other in zip(mine, wanted, strict=True):
            assert_equal(one, other)


def stored(num_rows: int, num_nodes: int) -> StoredTrees:
    shape = (num_rows, num_nodes)
    ids = [poisoned(*shape, dtype=torch.int64) for _ in range(3)]
    return StoredTrees(*ids, poisoned(*shape, num_nodes, dtype=torch.bool), poisoned(num_rows, dtype=torch.int64))


def test_storing_by_hand() -> None:
    trees, draft_tokens = stored(3, 4), poisoned(2, 4, dtype=torch.int64)
    reference.store_trees(
        trees,
        draft_tokens,
        tokens=torch.tensor([[5, 6, 7, 8], [9, 0, 0, 0]], device=DEVICE),
        parents=torch.tensor([[-1, 0, 0, 2], [-1, -1, -1, -1]], device=DEVICE),
        depths=torch.tensor([[1, 2, 2, 3], [1, 0, 0, 0]], device=DEVICE),
        num_nodes=torch.tensor([4, 1], device=DEVICE),
        rows=torch.tensor([2, 0], device=DEVICE),
        node_budget=torch.tensor([3, 9], device=DEVICE),
    )
    assert trees.num_nodes.tolist() == [1, 0x5A, 3]
    assert trees.tokens.tolist() == [[9, 0, 0, 0], [0x5A] * 4, [5, 6, 7, 8]]
    assert trees.parents[2].tolist() == [-1, 0, 0, 2]
    assert trees.depths[0].tolist() == [1, 0, 0, 0]
    assert trees.ancestors[2].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert trees.ancestors[0].int().tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 3
    assert draft_tokens.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]


@runs_kernels
def test_hidden_states_of_another_type() -> None:
    from redrafter_vllm.ops.draft_round import kernel

    source = source_of(1, 8, torch.float32, walked=False)
    with pytest.raises(ValueError, match=r"contiguous and torch.bfloat16, not torch.float32"):
        kernel.round_inputs(buffers(1, 8, torch.bfloat16), source, 1, 1, PADDING_ROW)


@runs_kernels
@pytest.mark.parametrize("num_nodes", [1, 2, 16, 19, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_reqs", [0, 1, 5])
def test_storing_against_reference(num_reqs: int, num_nodes: int) -> None:
    from redrafter_vllm.ops.draft_round import kernel

    rng = random.Random(num_nodes)
    counts = [rng.choice([0, num_nodes, rng.randint(0, num_nodes)]) for _ in range(num_reqs)]
    nodes = [[(rng.randrange(2**40), rng.randrange(-1, n), n + 1) for n in range(num_nodes)] for _ in counts]
    columns = torch.tensor(nodes, dtype=torch.int64, device=DEVICE).reshape(num_reqs, num_nodes, 3)
    tokens, parents, depths = (x.contiguous() for x in columns.unbind(-1))
    rows = torch.tensor(rng.sample(range(PADDING_ROW), num_reqs), dtype=torch.int64, device=DEVICE)
    node_budget = torch.tensor([rng.choice([0, 3, num_nodes]) for _ in counts], dtype=torch.int64, device=DEVICE)
    num_nodes_B = torch.tensor(counts, dtype=torch.int64, device=DEVICE)
    results = []
    for implementation in (reference, kernel):
        trees, draft_tokens = stored(PADDING_ROW + 1, num_nodes), poisoned(num_reqs, num_nodes, dtype=torch.int64)
        implementation.store_trees(trees, draft_tokens, tokens, parents, depths, num_nodes_B, rows, node_budget)
        results.append((*trees, draft_tokens))
    for wanted, mine in zip(*results, strict=True):
        assert_equal(mine, wanted)


@runs_kernels
@pytest.mark.racing  # a row that is never read
def test_padding_requests_share_the_padding_row() -> None:
    from redrafter_vllm.ops.draft_round import kernel

    trees, draft_tokens = stored(PADDING_ROW + 1, 3), poisoned(4, 3, dtype=torch.int64)
    untouched = [x.clone() for x in trees]
    tokens = torch.arange(12, device=DEVICE).view(4, 3)
    parents, depths = torch.tensor([[-1, 0, 1]] * 4, device=DEVICE), torch.tensor([[1, 2, 3]] * 4, device=DEVICE)
    counts, zero = torch.full((4,), 3, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    kernel.store_trees(trees, draft_tokens, tokens, parents, depths, counts, zero + PADDING_ROW, zero)
    for after, before in zip(trees, untouched, strict=True):
        assert_equal(after[:PADDING_ROW], before[:PADDING_ROW])
    assert trees.num_nodes[PADDING_ROW] == 0
