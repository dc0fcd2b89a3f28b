# SPDX-License-Identifier: Apache-2.0
"""A drafter takes over another's weights in its own memory, because a recorded round reads fixed addresses."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from redrafter_vllm import Drafter, beam_search
from redrafter_vllm.model.drafter import copy_tensors
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.model.quantization import rounding_linear
from tests.model.test_drafter import SHAPES
from tests.oracles import random_drafter

KINDS: dict[str, Callable[[Drafter], DrafterInterface]] = {
    "as loaded": lambda drafter: drafter,
    "packed": PackedDrafter,
    "projected": partial(PackedDrafter, project_embedding=True),
    "rounded": partial(PackedDrafter, make_linear=partial(rounding_linear, "int8")),
}


def addresses(drafter: DrafterInterface) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in drafter.tensors().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, {"draft_vocab_size": 5}], ids=str)
def test_the_numbers_change_and_the_memory_stays(shape: dict, kind: str) -> None:
    old, new = random_drafter(0, **shape), random_drafter(1, **shape)
    if "draft_vocab_size" in shape:
        old.set_draft_tokens(torch.tensor([0, 1, 4, 5, 9]))
        new.set_draft_tokens(torch.tensor([1, 2, 5, 8, 10]))
    embedding, context, roots = torch.randn(11, 6), torch.randn(3, 6), torch.tensor([0, 3, 10])
    expected = KINDS[kind](new)
    served = KINDS[kind](old)
    inputs, before = served.token_inputs(embedding), addresses(served)
    assert len(before) >= len(list(old.parameters())) - 2  # W and U are one matrix, and so they may be in a table

    served.adopt(expected)

    assert addresses(served) == before
    again = served.token_inputs(embedding, out=inputs)
    assert again.data_ptr() == inputs.data_ptr()
    found = beam_search(served, again, context, roots, beam_width=3, beam_length=4)
    wanted = beam_search(expected, expected.token_inputs(embedding), context, roots, beam_width=3, beam_length=4)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.log_probs, wanted.log_probs)
    # The other drafter shares no memory with it.
    assert not set(addresses(served).values()) & set(addresses(expected).values())


def test_another_shape_changes_nothing() -> None:
    served = PackedDrafter(random_drafter())
    before = {name: tensor.clone() for name, tensor in served.tensors().items()}
    with pytest.raises(ValueError, match="cannot replace those of shapes"):
        copy_tensors(served.tensors(), PackedDrafter(random_drafter(1, exit_dim=7)).tensors())
    assert all(torch.equal(tensor, before[name]) for name, tensor in served.tensors().items())
