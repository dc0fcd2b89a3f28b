# SPDX-License-Identifier: Apache-2.0
"""Passages of rows: what they contain, that no position is lost or doubled, and their order."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor

from redrafter_training.config.recipe import LossConfig
from redrafter_training.data.passages import Mix, Passages, cut, mixed
from redrafter_training.data.windows import Windows
from redrafter_training.target.model import TargetOutputs
from redrafter_training.trainer.loss import num_positions, unrolled_loss
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter

VOCABULARY, HIDDEN, BEAM_LENGTH = 11, 6, 3
LENGTH = 21


def states(windows: Windows) -> tuple[Tensor, Tensor]:
    """Hidden states and top-1 tokens that depend on the token alone."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1000, HIDDEN, generator=generator)[windows.tokens], (windows.tokens * 3) % VOCABULARY


def some_batches(count: int, *, documents: bool = True) -> list[Windows]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        loss_mask = torch.rand(2, LENGTH, generator=generator) < 0.6
        doc_ids = (torch.arange(LENGTH) // torch.tensor([[8], [11]])).where(torch.arange(LENGTH) < 19, -1)
        batches.append(Windows(tokens, loss_mask & (doc_ids >= 0), doc_ids if documents else None))
    return batches


def mix(steps: int, **changes: int) -> Mix:
    return Mix(**{"batches": 4, "positions": 4, "overlap": BEAM_LENGTH, "steps": steps, "seed": 5} | changes)


def test_passages_overlap_by_the_draft_and_the_last_one_is_padded() -> None:
    row = Windows(torch.arange(1, 8)[None], torch.ones(1, 7, dtype=torch.bool), torch.zeros(1, 7, dtype=torch.long))
    passages = cut(row, torch.arange(7.0)[None, :, None], torch.arange(11, 18)[None], positions=2, overlap=2)
    # Positions 0 to 4 have two tokens behind them.
    assert passages.tokens.tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 0]]
    assert passages.loss_mask.tolist() == [[True] * 4, [True] * 4, [True] * 3 + [False]]
    assert passages.doc_ids is not None and passages.doc_ids.tolist() == [[0] * 4, [0] * 4, [0, 0, 0, -1]]
    assert passages.hidden[:, :, 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 0]]
    assert passages.top1_ids.tolist() == [[11, 12, 13, 14], [13, 14, 15, 16], [15, 16, 17, -1]]
    # Behind the last token of a passage comes that of the row.
    assert passages.next_tokens.tolist() == [[2, 3, 4, 5], [4, 5, 6, 7], [6, 7, -1, -1]]
    assert passages.num_tokens == 6


def counted(rows: Windows, hidden: Tensor) -> Counter[tuple[object, ...]]:
    """What the drafter is compared for: depth, hidden state and tokens fed, of each position that counts."""
    found: Counter[tuple[object, ...]] = Counter()
    last = num_positions(rows.tokens.shape[1], BEAM_LENGTH)
    for depth in range(1, BEAM_LENGTH + 1):
        for row, place in rows.terms(depth, 0, last).nonzero().tolist():
            fed = rows.tokens[row, place + 1 : place + depth + 1].tolist()
            found[depth, *hidden[row, place].tolist(), *fed] += 1
    return found


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("positions", [1, 4, 7, 30])
def test_every_position_that_counts_comes_once(positions: int, documents: bool) -> None:
    batches = some_batches(6, documents=documents)
    expected = sum((counted(batch, states(batch)[0]) for batch in batches), Counter())
    steps = list(mixed(batches, mix(6, positions=positions), states, first=0))
    assert len(steps) == 6
    assert sum((counted(step, step.hidden) for step in steps), Counter()) == expected


def test_workers_share_the_positions() -> None:
    batches = some_batches(5)
    expected = sum((counted(batch, states(batch)[0]) for batch in batches), Counter())
    found: Counter[tuple[object, ...]] = Counter()
    for rank in range(2):
        shares = [batch.share(rank, 2) for batch in batches]
        steps = list(mixed(shares, mix(5), states, first=0, rank=rank))
        assert len(steps) == 5, "every worker has a part of every step"
        found += sum((counted(step, step.hidden) for step in steps), Counter())
    assert found == expected


def test_the_losses_of_a_group_are_those_of_its_rows() -> None:
    torch.manual_seed(0)
    drafter = Drafter(DrafterConfig(VOCABULARY, HIDDEN, 10, 1))
    embedding, head = torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    config = LossConfig(label_share=0.5, labels="data")

    def summed(rows: Windows, hidden: Tensor, top1_ids: Tensor, next_tokens: Tensor | None) -> Tensor:
        outputs = TargetOutputs(hidden, hidden @ head.T, top1_ids)
        last = num_positions(rows.tokens.shape[1], BEAM_LENGTH)
        sums = unrolled_loss(
            drafter, embedding, outputs, rows.tokens, rows.loss_mask, BEAM_LENGTH, 0, last,
            config=config, doc_ids=rows.doc_ids, next_tokens=next_tokens,
        )  # fmt: skip
        return torch.cat([sums.loss, sums.agreements.float(), sums.count.float()])

    batches = some_batches(4)
    rows = sum(summed(batch, *states(batch), None) for batch in batches)
    steps = mixed(batches, mix(4), states, first=0)
    passages = sum(summed(step, step.hidden, step.top1_ids, step.next_tokens) for step in steps)
    torch.testing.assert_close(passages, rows, rtol=1e-5, atol=1e-4)


def equal(one: Passages, other: Passages) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.hidden, other.hidden)


@pytest.mark.parametrize("first", [1, 4, 6])
def test_a_resumed_run_gets_the_same_passages(first: int) -> None:
    batches = some_batches(7)
    everything = list(mixed(batches, mix(7), states, first=0))
    resumed = list(mixed(batches, mix(7), states, first=first))
    assert len(everything) == 7 and len(resumed) == 7 - first
    assert all(map(equal, resumed, everything[first:]))


def test_a_step_has_passages_of_many_rows_in_another_order_for_each_group_and_worker() -> None:
    tokens = torch.arange(8)[:, None].expand(8, 43)  # each row has a token of its own
    rows = [Windows.full(tokens[i : i + 2]) for i in range(0, 8, 2)]
    steps = list(mixed(rows + rows, mix(8), states, first=0))
    sources = [step.tokens[:, 0].tolist() for step in steps]
    assert [len(source) for source in sources] == [20] * 8  # ten passages a row
    assert all(len(set(source)) >= 6 for source in sources)
    assert sources[:4] != sources[4:]
    other = list(mixed(rows, mix(4), states, first=0, rank=1))
    assert [step.tokens[:, 0].tolist() for step in other] != sources[:4]


def test_every_step_has_passages_where_none_carries_loss() -> None:
    silent = [Windows(batch.tokens, torch.zeros_like(batch.loss_mask), batch.doc_ids) for batch in some_batches(4)]
    assert all(len(step) for step in mixed(silent, mix(4), states, first=0))


def test_nothing_is_read_behind_the_last_step() -> None:
    batches = iter(some_batches(9))
    assert len(list(mixed(batches, mix(6), states, first=0))) == 6
    assert len(list(batches)) == 3
    assert list(islice(mixed(some_batches(6), mix(6), states, first=6), 1)) == []
