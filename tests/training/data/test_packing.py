# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import torch

from redrafter_training.data.packing import Packing, arrange, plan_windows
from redrafter_training.data.tokenize import Example
from redrafter_training.data.windows import Windows


def example(first: int, loss: str) -> Example:
    """Tokens first, first + 1, …; `loss` has a + for each token with loss."""
    tokens = torch.arange(first, first + len(loss), dtype=torch.int32)
    return Example(f"{first}", tokens, torch.tensor([mark == "+" for mark in loss]))


def by_hand() -> Windows:
    """Two documents and padding: a prompt of two and an answer of three, then one and one, then three of padding."""
    packing = Packing([example(10, "--+++"), example(20, "-+")], 10, seed=0, pad=7)
    assert len(packing) == 1
    windows = packing.rows([0])
    if windows.tokens[0, 0] == 20:
        packing = Packing([example(20, "-+"), example(10, "--+++")], 10, seed=0, pad=7)
        windows = packing.rows([0])
    return windows


def marks(mask: torch.Tensor) -> str:
    return "".join("+" if mark else "-" for mark in mask[0].tolist())


def test_a_window_by_hand() -> None:
    windows = by_hand()
    assert windows.tokens.tolist() == [[10, 11, 12, 13, 14, 20, 21, 7, 7, 7]]
    assert windows.doc_ids is not None
    assert windows.doc_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, -1, -1, -1]]
    assert windows.positions is not None
    # Padding goes on after the last document, so that it makes no border of its own.
    assert windows.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    # After token 11 comes 12, which is to be learned; after 14 comes another document.
    assert marks(windows.loss_mask) == "-+++-+----"


def test_terms_by_hand() -> None:
    windows = by_hand()
    # Depth 1 at p predicts p+2. The pairs within a document that end in a token with loss: 0→2, 1→3, 2→4.
    assert marks(windows.terms(1, 0, 8)) == "+++-----"
    # Depth 2 predicts p+3: 0→3, 1→4. The learned token at 6 is three after 3, in another document.
    assert marks(windows.terms(2, 0, 7)) == "++-----"
    assert marks(windows.terms(3, 0, 6)) == "+-----"
    assert marks(windows.terms(4, 0, 5)) == "-----"
    assert marks(windows.terms(1, 2, 4)) == "+-"
    for depth, first, last in [(0, 0, 1), (1, 0, 10), (1, -1, 2), (2, 3, 2)]:
        with pytest.raises(ValueError, match="do not fit"):
            windows.terms(depth, first, last)


def random_examples(rng: random.Random, length: int) -> list[Example]:
    examples, first = [], 1
    for _ in range(rng.choice([1, 2, 30, 200])):
        size = rng.randint(2, rng.choice([3, length]))
        learned = {rng.randrange(1, size)} | {i for i in range(1, size) if rng.random() < 0.4}
        examples.append(example(first, "".join("+" if i in learned else "-" for i in range(size))))
        first += size
    return examples


@pytest.mark.parametrize("seed", range(20))
def test_packing_keeps_every_token_once_and_no_loss_across_documents(seed: int) -> None:
    rng = random.Random(seed)
    length = rng.choice([3, 8, 33])
    examples = random_examples(rng, length)
    packing = Packing(examples, length, seed=seed)
    windows = packing.rows(range(len(packing)))
    # Tokens are numbered through all examples, from 1; padding is 0.
    learned = [int(t) for e in examples for t in e.tokens[e.loss_mask]]
    assert sorted(windows.tokens[:, 1:][windows.loss_mask[:, :-1]].tolist()) == learned
    assert sorted(t for t in windows.tokens.flatten().tolist() if t) == list(range(1, sum(map(len, examples)) + 1))
    owner = {int(t): number for number, e in enumerate(examples) for t in e.tokens}
    for depth in (1, 2):
        terms = windows.terms(depth, 0, length - depth - 1)
        for row, place in torch.cartesian_prod(torch.arange(len(windows)), torch.arange(length - depth - 1)).tolist():
            root, predicted = int(windows.tokens[row, place]), int(windows.tokens[row, place + depth + 1])
            same = root and predicted and owner[root] == owner[predicted]
            assert terms[row, place] == bool(same and int(windows.tokens[row, place + depth + 1]) in learned)
    # What a document teaches alone, it teaches in company: its learned tokens at least depth + 1 after its first.
    for depth in (1, 2):
        alone = sum(int(e.loss_mask[depth + 1 :].sum()) for e in examples)
        assert int(windows.terms(depth, 0, length - depth - 1).sum()) == alone
    assert packing.fill == pytest.approx(float((windows.tokens != 0).float().mean()))


def test_windows_do_not_depend_on_the_order_of_reading() -> None:
    packing = Packing(random_examples(random.Random(3), 8), 8, seed=0)
    every = packing.rows(range(len(packing)))
    some = packing.rows([len(packing) - 1, 0])
    assert torch.equal(some.tokens, every.tokens[[-1, 0]])
    assert some.doc_ids is not None and every.doc_ids is not None
    assert torch.equal(some.doc_ids, every.doc_ids[[-1, 0]])


def test_packing_depends_on_the_seed() -> None:
    lengths = [random.Random(0).randint(1, 50) for _ in range(300)]
    assert plan_windows(lengths, 64, 1) == plan_windows(lengths, 64, 1)
    assert plan_windows(lengths, 64, 1) != plan_windows(lengths, 64, 2)


def test_plans_by_hand() -> None:
    # Whatever the order, two sixes never share a window of ten, and each takes a four along.
    assert sorted(sorted((6, 6, 4, 4)[i] for i in w) for w in plan_windows([6, 6, 4, 4], 10, 5)) in (
        [[4, 6], [4, 6]],
        [[4, 4], [6], [6]],
    )
    assert sorted(plan_windows([10] * 100, 10, 0)) == [(i,) for i in range(100)]


def test_packing_is_tight() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(20, 1024) for _ in range(2000)]
    windows = plan_windows(lengths, 1024, 0)
    assert sum(lengths) / (len(windows) * 1024) > 0.95


def test_impossible_packings() -> None:
    with pytest.raises(ValueError, match="no examples"):
        Packing([], 8, seed=0)
    with pytest.raises(ValueError, match="example 1 has 9 tokens and windows have 8"):
        Packing([example(0, "-+"), example(5, "-++++++++")], 8, seed=0)
    with pytest.raises(ValueError, match="9 tokens do not fit a row of 8"):
        arrange([[example(0, "-+"), example(5, "-++++++")]], 8)
    with pytest.raises(ValueError, match="doc_ids of"):
        Windows(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
    for loss in ("---", "+-+"):
        with pytest.raises(ValueError, match="at least one token must carry loss"):
            example(0, loss)
