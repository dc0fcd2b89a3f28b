# SPDX-License-Identifier: Apache-2.0
"""A packed drafter computes what the definition says, and reads each weight once a step."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from redrafter_vllm import Drafter, beam_search
from redrafter_vllm.model.packed import Linear, PackedDrafter, plain_linear
from tests.model.test_drafter import SHAPES
from tests.oracles import next_log_probs, random_drafter

WAYS = [False, True]


@pytest.mark.parametrize("project", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_follow_the_definition(shape: dict, project: bool) -> None:
    drafter = random_drafter(**shape).double()
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    packed = PackedDrafter(drafter, project_embedding=project)
    inputs = packed.token_inputs(embedding)

    share = packed.context_share(context)
    state = packed.initial_state(context).unsqueeze(1).expand(2, 3, 6)
    drafted = torch.tensor([[[4, 0, 9], [4, 7, 10], [4, 4, 4]], [[1, 2, 3], [1, 5, 0], [1, 8, 8]]])
    for step in range(3):
        state = packed.next_state(state, inputs[drafted[..., step]])
    found = packed.logits(share, state).log_softmax(-1)
    for row in range(2):
        for beam in range(3):
            tokens = tuple(drafted[row, beam].tolist())
            expected = next_log_probs(drafter.state_dict(), embedding, context[row], tokens)
            torch.testing.assert_close(found[row, beam], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(packed(context, state).log_softmax(-1), found)


@pytest.mark.parametrize("project", WAYS)
def test_a_trimmed_drafter_keeps_its_map(project: bool) -> None:
    torch.manual_seed(3)
    drafter = random_drafter(draft_vocab_size=5)
    drafter.set_draft_tokens(torch.tensor([1, 2, 5, 8, 10]))
    embedding, context, roots = torch.randn(11, 6), torch.randn(3, 6), torch.tensor([0, 3, 10])
    packed = PackedDrafter(drafter, project_embedding=project)
    expected = beam_search(drafter, embedding, context, roots, beam_width=3, beam_length=4)
    found = beam_search(packed, packed.token_inputs(embedding), context, roots, beam_width=3, beam_length=4)
    assert torch.equal(found.tokens, expected.tokens)
    # Relative, too: sums of other orders, and log-probabilities of ten and more.
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_the_table_is_made_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redrafter_vllm.model.packed._ROWS_AT_ONCE", rows)
    drafter, embedding = random_drafter(), torch.randn(11, 6)
    table = PackedDrafter(drafter, project_embedding=True).token_inputs(embedding)
    torch.testing.assert_close(table, embedding @ drafter.rnn_w.weight.detach().T)


def reads_of(drafter: Drafter, *, beam_length: int, project: bool) -> Counter[tuple[int, ...]]:
    """How often each matrix, by its shape, was multiplied with in one round."""
    reads: Counter[tuple[int, ...]] = Counter()

    def counting(weight: Tensor, bias: Tensor | None) -> Linear:
        product = plain_linear(weight, bias)

        def read(x: Tensor) -> Tensor:
            reads[tuple(weight.shape)] += 1
            return product(x)

        return read

    packed = PackedDrafter(drafter, counting, project_embedding=project)
    inputs = packed.token_inputs(torch.randn(11, 6))
    beam_search(packed, inputs, torch.randn(1, 6), torch.tensor([3]), beam_width=2, beam_length=beam_length)
    return reads


def test_a_step_reads_each_weight_once_and_a_round_the_context_half_once() -> None:
    drafter = random_drafter()
    # [12, 6] are both halves of the first linear layer: the context's once, the state's at each of 4 steps.
    assert reads_of(drafter, beam_length=4, project=False) == {(6, 12): 4, (12, 6): 5, (12, 12): 4, (11, 12): 4}
    assert reads_of(drafter, beam_length=4, project=True) == {(6, 6): 4, (12, 6): 5, (12, 12): 4, (11, 12): 4}


def test_weights_of_a_packed_drafter_are_contiguous() -> None:
    seen: list[Tensor] = []

    def remember(weight: Tensor, bias: Tensor | None) -> Linear:
        seen.append(weight)
        return plain_linear(weight, bias)

    packed = PackedDrafter(random_drafter(), remember)
    assert all(weight.is_contiguous() for weight in seen)
    assert {tensor.data_ptr() for tensor in packed.tensors().values()} >= {weight.data_ptr() for weight in seen}
    assert packed.dtype == torch.float32


def test_a_packed_drafter_cannot_be_saved_or_trained() -> None:
    packed = PackedDrafter(random_drafter())
    assert not hasattr(packed, "save_pretrained") and not hasattr(packed, "parameters")
