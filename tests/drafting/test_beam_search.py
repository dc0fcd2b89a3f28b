# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
from torch import Tensor

from redrafter_vllm import Beams, Drafter, DraftTree, beam_search
from redrafter_vllm.ops.beam_step.reference import top_k_stable
from tests.no_sync import HostSyncError, forbid_host_sync
from tests.oracles import kept_beams, next_log_probs, random_drafter, steps_of_row


def inputs(drafter: Drafter, batch: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    vocab, hidden = drafter.config.vocab_size, drafter.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(vocab, hidden, generator=generator)
    context = torch.randn(batch, hidden, generator=generator)
    return embedding, context, torch.randint(vocab, (batch,), generator=generator)


@pytest.mark.parametrize("shape", [{}, {"rnn": False}, {"exit_dim": 7, "num_draft_layers": 1}], ids=str)
@pytest.mark.parametrize(("width", "length"), [(1, 5), (2, 3), (5, 4), (11, 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_against_slow_beam_search(shape: dict, width: int, length: int, batch: int) -> None:
    drafter = random_drafter(seed=width, **shape)
    embedding, context, roots = inputs(drafter, batch)
    beams = beam_search(drafter, embedding, context, roots, beam_width=width, beam_length=length)
    for row in range(batch):
        expected = steps_of_row(drafter.state_dict(), embedding, context[row], int(roots[row]), width, length)
        found = kept_beams(beams, row)
        assert [[path for path, _ in step] for step in found] == [[path for path, _ in step] for step in expected]
        for step, wanted in zip(beams.log_probs[row], expected, strict=True):
            torch.testing.assert_close(step, torch.tensor([log_prob for _, log_prob in wanted]), atol=1e-4, rtol=0)
        assert beams.paths()[row].tolist() == [list(path) for path, _ in expected[-1]]


def test_against_enumeration() -> None:
    """With as many beams as tokens nothing is pruned in two steps: the beams are the best of all sequences."""
    drafter = random_drafter(seed=9, vocab_size=7)
    embedding, context, roots = inputs(drafter, 2)
    beams = beam_search(drafter, embedding, context, roots, beam_width=7, beam_length=2)
    for row in range(2):

        def score(pair: tuple[int, ...], row: int = row) -> float:
            root = int(roots[row])
            first = next_log_probs(drafter.state_dict(), embedding, context[row], (root,))
            second = next_log_probs(drafter.state_dict(), embedding, context[row], (root, pair[0]))
            return first[pair[0]] + second[pair[1]]

        best = sorted(itertools.product(range(7), repeat=2), key=score, reverse=True)[:7]
        assert [tuple(beam) for beam in beams.paths()[row].tolist()] == best


def test_best_beam_first() -> None:
    drafter = random_drafter(seed=5, vocab_size=40)
    log_probs = beam_search(drafter, *inputs(drafter, 6), beam_width=8, beam_length=4).log_probs
    assert (log_probs.diff(dim=-1) <= 0).all()


def test_equal_scores_go_to_the_better_beam_then_the_lower_token() -> None:
    drafter = random_drafter()
    for parameter in drafter.parameters():
        parameter.data.zero_()
    beams = beam_search(drafter, *inputs(drafter, 1), beam_width=3, beam_length=2)
    assert beams.paths().tolist() == [[[0, 0], [0, 1], [0, 2]]]
    assert beams.tokens[0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_top_k_stable_is_a_stable_sort(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    values = torch.randint(-3, 2, (4, 3, size), generator=generator).float()
    values[0, 0] = -torch.inf
    values[0, 1, ::2] = -0.0
    for k in {1, min(5, size), min(50, size), size}:
        expected = values.sort(dim=-1, descending=True, stable=True)
        top, index = top_k_stable(values, k)
        assert torch.equal(top, expected.values[..., :k])
        assert torch.equal(index, expected.indices[..., :k])


def test_top_k_stable_keeps_indices_in_range_for_nan() -> None:
    values = torch.tensor([[torch.nan, 1.0, 1.0, 0.0], [torch.nan] * 4])
    index = top_k_stable(values, 3)[1]
    assert ((index >= 0) & (index < 4)).all()


def test_top_k_renormalises() -> None:
    drafter = random_drafter(seed=2)
    embedding, context, roots = inputs(drafter, 1)
    beams = beam_search(drafter, embedding, context, roots, beam_width=2, beam_length=1, logits_top_k=3)
    full = sorted(next_log_probs(drafter.state_dict(), embedding, context[0], (int(roots[0]),)), reverse=True)
    expected = torch.tensor(full[:3]).log_softmax(0)[:2]
    torch.testing.assert_close(beams.log_probs[0, 0], expected, atol=1e-5, rtol=0)


def test_top_k_beyond_the_vocabulary_is_the_full_softmax() -> None:
    drafter = random_drafter(seed=2)
    few = beam_search(drafter, *inputs(drafter, 2), beam_width=3, beam_length=3, logits_top_k=50)
    full = beam_search(drafter, *inputs(drafter, 2), beam_width=3, beam_length=3)
    assert torch.equal(few.tokens, full.tokens)
    torch.testing.assert_close(few.log_probs, full.log_probs, atol=1e-5, rtol=0)


def test_bf16_drafter_scores_in_fp32() -> None:
    """Over the whole vocabulary the probabilities sum to one up to fp32 rounding, which bf16 would miss."""
    drafter = random_drafter(seed=4, vocab_size=50).to(torch.bfloat16)
    embedding, context, roots = inputs(drafter, 2)
    beams = beam_search(drafter, embedding, context, roots, beam_width=50, beam_length=1)
    assert beams.log_probs.dtype == torch.float32
    torch.testing.assert_close(beams.log_probs.logsumexp(-1), torch.zeros(2, 1), atol=1e-5, rtol=0)
    for row in range(2):
        expected = next_log_probs(drafter.state_dict(), embedding, context[row], (int(roots[row]),))
        in_order = torch.tensor(expected)[beams.tokens[row, 0]]
        torch.testing.assert_close(beams.log_probs[row, 0], in_order, atol=0.1, rtol=0)


def test_empty_batch() -> None:
    drafter = random_drafter()
    beams = beam_search(drafter, *inputs(drafter, 0), beam_width=3, beam_length=2)
    assert beams.tokens.shape == beams.parents.shape == beams.log_probs.shape == (0, 2, 3)
    assert beams.paths().shape == (0, 3, 2)
    assert DraftTree.from_beams(beams, 4).num_nodes.shape == (0,)


def test_embedding_may_be_a_function() -> None:
    drafter = random_drafter()
    embedding, context, roots = inputs(drafter, 2)
    as_tensor = beam_search(drafter, embedding, context, roots, beam_width=3, beam_length=2)
    as_function = beam_search(drafter, lambda ids: embedding[ids], context, roots, beam_width=3, beam_length=2)
    assert torch.equal(as_tensor.tokens, as_function.tokens)


def test_chain_rows_hold_the_best_beam_only() -> None:
    drafter = random_drafter(seed=6)
    beams = beam_search(drafter, *inputs(drafter, 2), beam_width=3, beam_length=4)
    tree = DraftTree.from_beams(beams, 12, torch.tensor([1, 3]))
    assert tree.tokens[0, :4].tolist() == beams.paths()[0, 0].tolist()
    assert tree.parents[0, :4].tolist() == [-1, 0, 1, 2]
    whole = DraftTree.from_beams(beams, 12)
    assert int(tree.num_nodes[0]) == 4
    assert torch.equal(tree.tokens[1], whole.tokens[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_width": 12}, "vocabulary has only 11"),
        ({"beam_width": 0}, "at least 1"),
        ({"beam_length": -1}, "at least 1"),
        ({"logits_top_k": 2}, "logits_top_k is 2"),
        ({"context": torch.zeros(2, 5)}, "context must be"),
        ({"root_tokens": torch.zeros(3, dtype=torch.long)}, "context must be"),
        ({"embedding": torch.zeros(10, 6)}, "embedding must be"),
        ({"embedding": torch.zeros(11, 5)}, "embedding must be"),
    ],
)
def test_bad_arguments(changes: dict, message: str) -> None:
    drafter = random_drafter()
    embedding, context, root_tokens = inputs(drafter, 2)
    arguments: dict = {
        "embedding": embedding,
        "context": context,
        "root_tokens": root_tokens,
        "beam_width": 3,
        "beam_length": 2,
    }
    with pytest.raises(ValueError, match=message):
        beam_search(drafter, **arguments | changes)


def test_no_beam_step_is_no_work_of_the_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = random_drafter()
    embedding, context, roots = inputs(drafter, 3)
    for name in ("context_share", "initial_state", "advance", "logits"):
        monkeypatch.setattr(drafter, name, None)
    beams = beam_search(drafter, embedding, context, roots, beam_width=4, beam_length=0)
    assert beams.tokens.shape == beams.parents.shape == beams.log_probs.shape == (3, 0, 4)


def test_beams_of_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Beams(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="one shape"):
        Beams(*[torch.zeros(2, 3)] * 3)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("shape", [{}, {"exit_dim": 7, "rnn": False}], ids=str)
def test_a_round_never_waits_for_the_device(shape: dict, top_k: int | None) -> None:
    drafter = random_drafter(**shape)
    embedding, context, roots = inputs(drafter, 3)
    with forbid_host_sync():
        beams = beam_search(drafter, embedding, context, roots, beam_width=4, beam_length=3, logits_top_k=top_k)
        tree = DraftTree.from_beams(beams, 7, torch.where(roots > 5, 1, 3))
        tree.ancestor_mask()
        beams.paths()


def test_the_guard_notices_what_it_forbids() -> None:
    x = torch.arange(4)
    offences = [
        lambda: x[0].item(),
        lambda: bool((x > 1).any()),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: x.clone().__setitem__(x > 1, x[:2]),
        lambda: x.masked_select(x > 1),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: torch.unique(x),
        lambda: torch.repeat_interleave(x, x),
    ]
    for offence in offences:
        with pytest.raises(HostSyncError), forbid_host_sync():
            offence()
