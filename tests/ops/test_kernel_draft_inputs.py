# SPDX-License-Identifier: Apache-2.0
"""Preparation of a verification step: by hand, and kernel against reference."""

import random

import pytest
import torch

from redrafter_vllm.ops.draft_inputs import BatchDrafts, RowLayout, StoredTrees, reference
from tests.ops.devices import DEVICE, assert_equal, poisoned, runs_kernels


def outputs(num_reqs: int, num_nodes: int, num_rows: int) -> tuple[BatchDrafts, RowLayout]:
    """Poisoned buffers."""
    nodes = (num_reqs, num_nodes)
    ids = [poisoned(*nodes, dtype=torch.int64) for _ in range(3)]
    ancestors, valid = poisoned(*nodes, num_nodes, dtype=torch.bool), poisoned(*nodes, dtype=torch.bool)
    counts = [poisoned(n, dtype=torch.int64) for n in (num_reqs, num_reqs, num_reqs, num_rows, num_rows)]
    return BatchDrafts(*ids, ancestors, valid), RowLayout(*counts)


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def test_by_hand() -> None:
    """Three requests: a tree of docs/design/architecture.md cut to 4 nodes, a prompt, placeholder drafts."""
    nothing = [0] * 5
    tree = StoredTrees(
        tokens=torch.tensor([nothing, [11, 12, 13, 14, 15], nothing, nothing], device=DEVICE),
        parents=torch.tensor([[-1] * 5, [-1, -1, 0, 0, 2], [-1] * 5, [-1] * 5], device=DEVICE),
        depths=torch.tensor([nothing, [1, 1, 2, 2, 3], nothing, nothing], device=DEVICE),
        ancestors=torch.zeros(4, 5, 5, dtype=torch.bool, device=DEVICE),
        num_nodes=integers(0, 5, 0, 0),
    )
    for node, path in enumerate([(0,), (1,), (0, 2), (0, 3), (0, 2, 4)]):
        tree.ancestors[1, node, list(path)] = True
    drafts, layout = outputs(3, 5, 8)
    # Tokens 0–4: root and four nodes at positions 100–104; 5–7: a prompt, of which the last row counts; 8–9: a root and
    # a placeholder.
    positions = integers(100, 101, 102, 103, 104, 0, 1, 2, 50, 51)
    reference.draft_inputs(
        drafts,
        layout,
        positions,
        tree,
        idx_mapping=integers(1, 3, 0),
        cu_num_logits=integers(0, 5, 6, 8).int(),
        logits_indices=integers(0, 1, 2, 3, 4, 7, 8, 9),
    )
    assert positions.tolist() == [100, 101, 101, 102, 102, 0, 1, 2, 50, 51]
    assert drafts.tokens[0].tolist() == [11, 12, 13, 14, 15]
    assert drafts.valid.tolist() == [[True] * 4 + [False], [False] * 5, [False] * 5]
    own = torch.eye(5, dtype=torch.bool, device=DEVICE)
    assert_equal(drafts.ancestors[1], own)
    assert_equal(drafts.ancestors[0, :4], tree.ancestors[1, :4])
    assert_equal(drafts.ancestors[0, 4], own[4])
    assert layout.first_row.tolist() == [0, 5, 6]
    assert layout.num_drafts.tolist() == [4, 0, 1]
    assert layout.root_token.tolist() == [0, 7, 8]
    assert layout.req_of_row.tolist() == [0, 0, 0, 0, 0, 1, 2, 2]
    assert layout.local_of_row.tolist() == [0, 1, 2, 3, 4, 0, 0, 1]


def random_case(num_reqs: int, num_nodes: int, seed: int) -> tuple[StoredTrees, tuple[torch.Tensor, ...], torch.Tensor]:
    """More stored trees than the batch has requests: full, cut, empty and absent; prompts between the requests."""
    rng = random.Random(seed)
    rows = num_reqs + 3
    shape = (rows, num_nodes)
    generator = torch.Generator().manual_seed(seed)
    trees = StoredTrees(
        tokens=torch.randint(2**40, shape, generator=generator),
        parents=torch.randint(-1, max(num_nodes - 1, 1), shape, generator=generator),
        depths=torch.randint(1, 9, shape, generator=generator),
        ancestors=torch.rand(*shape, num_nodes, generator=generator) < 0.5,
        num_nodes=torch.tensor([rng.choice([0, num_nodes, rng.randint(0, num_nodes)]) for _ in range(rows)]),
    )
    drafts = [rng.choice([0, num_nodes, rng.randint(0, num_nodes)]) for _ in range(num_reqs)]
    logits_indices, cu_num_logits, num_tokens = [], [0], 0
    for count in drafts:
        num_tokens += rng.choice([0, 0, 5])
        logits_indices += range(num_tokens, num_tokens + count + 1)
        num_tokens += count + 1
        cu_num_logits.append(len(logits_indices))
    idx_mapping = torch.tensor(rng.sample(range(rows), num_reqs), dtype=torch.int64)
    inputs = idx_mapping, torch.tensor(cu_num_logits, dtype=torch.int32), torch.tensor(logits_indices).long()
    positions = torch.randint(10**6, (num_tokens + 2,), generator=generator)
    on_device = StoredTrees(*(x.to(DEVICE) for x in trees))
    return on_device, tuple(x.to(DEVICE) for x in inputs), positions.to(DEVICE)


@runs_kernels
@pytest.mark.parametrize("num_nodes", [1, 3, 16, 17, 40, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_reqs", [0, 1, 3])
def test_kernel_against_reference(num_reqs: int, num_nodes: int) -> None:
    from redrafter_vllm.ops.draft_inputs import kernel

    for seed in range(2):
        trees, inputs, positions = random_case(num_reqs, num_nodes, seed)
        results = []
        for implementation in (reference, kernel):
            drafts, layout = outputs(num_reqs, num_nodes, inputs[2].shape[0])
            moved = positions.clone()
            for _ in range(2):  # a second time changes nothing
                implementation.draft_inputs(drafts, layout, moved, trees, *inputs)
            results.append((*drafts, *layout, moved))
        for wanted, mine in zip(*results, strict=True):
            assert_equal(mine, wanted)
