# SPDX-License-Identifier: Apache-2.0
"""Beams kept step by step: by hand, kernel against reference, and the whole search with kernels."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.vocab_mapping import to_offsets
from redrafter_vllm.drafting.beam_search import beam_search
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.ops import dispatch
from redrafter_vllm.ops.beam_step import BeamStep
from redrafter_vllm.ops.grow_beams import BeamHistory, reference
from tests.ops.devices import DEVICE, assert_equal, runs_kernels
from tests.ops.poison import poison_empty


def test_by_hand() -> None:
    history = BeamHistory(torch.zeros(1, 2, 2), *(torch.zeros(1, 2, 2, dtype=torch.long) for _ in range(2)))
    chosen = BeamStep(torch.tensor([[-4.0, -5.0]]), torch.tensor([[1, 0]]), torch.tensor([[7, 8]]))
    state = reference.grow_beams(history, chosen, torch.tensor([[[10.0, 11.0], [20.0, 21.0]]]), 1)
    assert state.tolist() == [[[20.0, 21.0], [10.0, 11.0]]]
    assert history.scores.tolist() == [[[0.0, 0.0], [-4.0, -5.0]]]
    assert history.parents.tolist() == [[[0, 0], [1, 0]]]
    assert history.tokens.tolist() == [[[0, 0], [7, 8]]]


@runs_kernels
@pytest.mark.parametrize(
    ("batch", "width", "length", "hidden_size", "dtype"),
    [
        (1, 1, 1, 1, torch.float32),
        (2, 5, 1, 33, torch.bfloat16),
        (3, 4, 3, 1025, torch.float16),
        (2, 7, 32, 64, torch.float32),
        (0, 3, 2, 8, torch.float32),
    ],
)
def test_kernel_against_reference(
    batch: int, width: int, length: int, hidden_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of both histories is written, and nothing else."""
    from redrafter_vllm.ops.grow_beams import kernel

    generator = torch.Generator().manual_seed(width)

    def integers(limit: int) -> Tensor:
        return torch.randint(limit, (batch, width), generator=generator).to(DEVICE)

    types = torch.float32, torch.int64, torch.int64
    wanted = BeamHistory(*(torch.full((batch, length, width), -7, dtype=dtype, device=DEVICE) for dtype in types))
    found = BeamHistory(*(tensor.clone() for tensor in wanted))
    for step in range(length):
        chosen = BeamStep(torch.randn(batch, width, generator=generator).to(DEVICE), integers(width), integers(2**40))
        state = torch.randn(batch, width, hidden_size, generator=generator).to(DEVICE, dtype)
        if step == 0:  # all beams continue the root
            chosen.parents.zero_()
            state = state[:, :1]
        with monkeypatch.context() as patches:
            poison_empty(patches)
            mine = kernel.grow_beams(found, chosen, state, step)
        assert_equal(mine, reference.grow_beams(wanted, chosen, state, step))
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)


class Search:
    """A random drafter with random inputs, and the beams that the references find."""

    def __init__(self, config: DrafterConfig, width: int, logits_top_k: int | None = None) -> None:
        torch.manual_seed(3)
        self.drafter = Drafter(config).to(DEVICE)
        for parameter in self.drafter.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        if config.draft_vocab_size is not None:
            kept = torch.randperm(config.vocab_size)[: config.draft_vocab_size].sort().values
            self.drafter.d2t.copy_(to_offsets(kept))
        self.embedding = torch.randn(config.vocab_size, config.hidden_size, device=DEVICE)
        context, roots = torch.randn(3, config.hidden_size, device=DEVICE), torch.tensor([0, 59, 7], device=DEVICE)
        self.inputs = context, roots
        self.options = dict(beam_width=width, beam_length=4, logits_top_k=logits_top_k)
        with patch.object(dispatch, "use_kernel", lambda args: False):
            self.wanted = beam_search(self.drafter, self.embedding, *self.inputs, **self.options)

    def check(self, drafter: DrafterInterface, tolerance: float) -> None:
        """Compares the beams that kernels find with `drafter`."""
        mine = beam_search(drafter, drafter.token_inputs(self.embedding), *self.inputs, **self.options)
        assert torch.equal(mine.tokens, self.wanted.tokens)
        torch.testing.assert_close(mine.log_probs, self.wanted.log_probs, atol=tolerance, rtol=tolerance)
        if self.drafter.draft_tokens is not None:
            assert torch.isin(mine.tokens, self.drafter.draft_tokens).all()


@runs_kernels
@pytest.mark.parametrize("logits_top_k", [None, 8])
@pytest.mark.parametrize("draft_vocab_size", [None, 29], ids=["whole", "trimmed"])
@pytest.mark.parametrize("width", [1, 4])
def test_a_search_with_kernels(
    width: int, draft_vocab_size: int | None, logits_top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same beams as with references, with a draft vocabulary, renormalised logits, and chains."""
    search = Search(DrafterConfig(60, 24, 48, 1, draft_vocab_size=draft_vocab_size), width, logits_top_k)
    monkeypatch.setattr(dispatch, "_ALWAYS", True)
    search.check(search.drafter, 2e-6)


@runs_kernels
@pytest.mark.parametrize("shape", [(48, 2, True), (30, 1, True), (48, 0, True), (48, 1, False)], ids=str)
@pytest.mark.parametrize("project", [False, True], ids=["embedding", "table"])
def test_a_packed_search_with_kernels(
    project: bool, shape: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shapes of drafters: with and without input projection, ResBlocks and recurrent weights."""
    search = Search(DrafterConfig(60, 24, *shape, draft_vocab_size=29), 3)
    monkeypatch.setattr(dispatch, "_ALWAYS", True)
    # A packed drafter adds in another order.
    search.check(PackedDrafter(search.drafter, project_embedding=project), 2e-5)
