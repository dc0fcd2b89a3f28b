# SPDX-License-Identifier: Apache-2.0
"""The interface of a drafter to drafting and serving: of one as loaded, packed, or split over ranks."""

from typing import Protocol, Self

import torch
from torch import Tensor

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.ops.beam_step import BeamStep


class DrafterInterface(Protocol):
    """A drafter to search beams over: `Drafter`, `PackedDrafter` and `ShardedDrafter`."""

    @property
    def config(self) -> DrafterConfig:
        """The shape of the whole drafter, on every rank."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of states and logits."""

    def token_inputs(self, embedding: Tensor, out: Tensor | None = None) -> Tensor:
        """The rows that `next_state` takes for each token, [V, H], from the target's embedding [V, H].

        That is the embedding itself, unless the drafter is packed with a product, which is made in `out` where given.
        """

    def initial_state(self, context: Tensor) -> Tensor:
        """s_0 for `context` [..., H]: [..., H]."""

    def next_state(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        """s_t from s_{t-1} [..., H] and E(g_{t-1}) [..., H], rows of `token_inputs`."""

    def advance(self, state: Tensor, tokens: Tensor, inputs: Tensor) -> Tensor:
        """`next_state` for states [B, W, H] and `tokens` [B, W], whose rows of `inputs` = `token_inputs` it takes."""

    def context_share(self, context: Tensor) -> Tensor:
        """The contribution of `context` [..., H] to every step of a round: [..., S], an opaque input of `logits`."""

    def logits(self, share: Tensor, state: Tensor) -> Tensor:
        """Next-token logits [B, W, V] for a `context_share` [B, S] and a state [B, W, H].

        Over a draft vocabulary they are [B, W, D]; of a drafter split over ranks, those of this rank's tokens.
        """

    def __call__(self, context: Tensor, state: Tensor) -> Tensor:
        """The same as `logits(context_share(context), state)`, if possible with the first layer in one product."""

    def beam_step(self, logits: Tensor, scores: Tensor | None, logits_top_k: int | None = None) -> BeamStep:
        """The best continuations of the beams, with the target's token ids; see `ops.beam_step`."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it drafts with, by name: the memory that `adopt` writes to."""

    def adopt(self, other: Self) -> None:
        """Drafts as `other`, of the same kind and config, in the memory that this one has."""
