# SPDX-License-Identifier: Apache-2.0
"""The recurrent drafter of arXiv 2403.09919, section 3: a one-layer RNN over the drafted tokens and a residual head."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as lookup
from torch.nn.functional import linear, silu

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.io import load_checkpoint, save_checkpoint
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_target_ids, to_offsets, to_target_ids
from redrafter_vllm.ops.beam_step import BeamStep, beam_step


def copy_tensors(own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Copies the `new` tensors into `own` ones of the same names and shapes.

    Raises ValueError where names or shapes differ, before any is copied.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (own, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"tensors of shapes {shapes[1]} cannot replace those of shapes {shapes[0]}")
    for name, tensor in own.items():
        tensor.copy_(new[name])


class ResBlock(nn.Module):
    """x + silu(L·x + b), [..., exit_dim] -> [..., exit_dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + silu(self.linear(x))


def context_and_state(context: Tensor, state: Tensor) -> Tensor:
    """c ⊕ s, [..., 2H]; a `context` with one dimension less than `state` serves all beams."""
    if context.dim() < state.dim():
        context = context.unsqueeze(-2)
    return torch.cat(torch.broadcast_tensors(context, state), -1)


class DrafterBase(ABC):
    """The computation of a `Drafter`, but for its products with weights, which each subclass has in its own layout."""

    config: DrafterConfig
    d2t: Tensor  # [D] int64, only with a draft vocabulary

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of states and logits."""

    @property
    def draft_tokens(self) -> Tensor | None:
        """Target ids of the draft vocabulary, ascending, [D]; None where it is the whole vocabulary."""
        return None if self.config.draft_vocab_size is None else to_target_ids(self.d2t)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target's token ids for indices into `logits`, any shape."""
        return draft_ids if self.config.draft_vocab_size is None else draft_ids + self.d2t[draft_ids]

    def token_inputs(self, embedding: Tensor, out: Tensor | None = None) -> Tensor:
        """See `DrafterInterface`: the embedding itself."""
        return embedding

    def initial_state(self, context: Tensor) -> Tensor:
        """s_0 for `context` [..., H]: zeros [..., H]."""
        return torch.zeros_like(context)

    def next_state(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        """s_t from s_{t-1} [..., H] and E(g_{t-1}) [..., H], rows of `token_inputs`."""
        if not self.config.rnn:
            return state + token_embedding
        return silu(self._recurrence(state, token_embedding))

    def advance(self, state: Tensor, tokens: Tensor, inputs: Tensor) -> Tensor:
        """`next_state` for states [B, W, H] and `tokens` [B, W], whose rows of `inputs` = `token_inputs` it takes."""
        return self.next_state(state, lookup(tokens, inputs).to(self.dtype))

    def context_share(self, context: Tensor) -> Tensor:
        """The contribution of `context` [..., H] to every step of a round: [..., S], an opaque input of `logits`.

        The first S' entries are the context's half of the first linear layer, bias included. Without an input
        projection the context itself also goes on to later layers, by the first ResBlock's skip: it is appended.
        """
        share = self._context_half(context)
        return share if self.config.has_input_proj else torch.cat((share, context), -1)

    def logits(self, share: Tensor, state: Tensor) -> Tensor:
        """Next-token logits [..., V], or [..., D] over a draft vocabulary, for a `context_share` [..., S] and a state
        [..., H].

        The leading dimensions broadcast; a `share` with one dimension less than `state` serves all beams:
        [B, S] with [B, W, H] gives [B, W, V].
        """
        if self.config.starts_with_output:
            return self._first_product(share, state)
        return self._output_product(self.features(share, state))

    def beam_step(self, logits: Tensor, scores: Tensor | None, logits_top_k: int | None = None) -> BeamStep:
        """The best continuations of the beams, with the target's token ids; see `ops.beam_step`."""
        offsets = None if self.config.draft_vocab_size is None else self.d2t
        return beam_step(logits, scores, logits_top_k, offsets)

    @abstractmethod
    def __call__(self, context: Tensor, state: Tensor) -> Tensor:
        """See `DrafterInterface`."""

    @abstractmethod
    def features(self, share: Tensor, state: Tensor) -> Tensor:
        """The input of the last layer, [..., exit_dim], for the arguments of `logits`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it drafts with, by name: the memory that `adopt` writes to."""

    @abstractmethod
    def adopt(self, other: Self) -> None:
        """Drafts as `other`, of the same kind and config, in the memory that this one has."""

    @abstractmethod
    def _recurrence(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        """W·E(g) + U·s + b."""

    @abstractmethod
    def _context_half(self, context: Tensor) -> Tensor:
        """The context's half of the first linear layer, bias included."""

    @abstractmethod
    def _state_half(self, state: Tensor) -> Tensor:
        """The state's half of the first linear layer."""

    @abstractmethod
    def _output_product(self, x: Tensor) -> Tensor:
        """The output layer, where it is not the first one."""

    def _first_product(self, share: Tensor, state: Tensor) -> Tensor:
        if share.dim() < state.dim():
            share = share.unsqueeze(-2)
        return share[..., : self.config.first_size] + self._state_half(state)


class Drafter(nn.Module, DrafterBase):
    """Predicts the next tokens from the target's last hidden state `c` and the tokens drafted since.

    s_0 = 0, s_t = silu(W·E(g_{t-1}) + U·s_{t-1} + b), or s_{t-1} + E(g_{t-1}) when `rnn` is false, and
    logits_t = LMHead(ResBlocks(c ⊕ s_t)), with E the target's embedding. Because `c` does not change during a round,
    its product with the first linear layer is computed once, by `context_share`, and `logits` adds the state's part.

    With a draft vocabulary, logits are over draft ids, which `target_ids` maps to tokens; the map is the buffer `d2t`,
    at first that of the lowest ids. Embeddings are always those of target ids.

    Parameter names are those of Apple's checkpoints.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_input_proj:
            self.input_proj = nn.Linear(2 * config.hidden_size, config.exit_dim)
        self.lm_head = nn.Sequential(
            *(ResBlock(config.exit_dim) for _ in range(config.num_draft_layers)),
            nn.Linear(config.exit_dim, config.output_size, bias=False),
        )
        if config.rnn:
            self.rnn_u = nn.Linear(config.hidden_size, config.hidden_size)
            self.rnn_w = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if config.draft_vocab_size is not None:
            self.register_buffer(MAP, torch.zeros(config.draft_vocab_size, dtype=torch.int64))

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """Loads a checkpoint directory with any of the known tensor names; see `redrafter_vllm.checkpoint.names`.

        `dtype` None keeps the stored type.

        Raises `CheckpointError`.
        """
        config, tensors = load_checkpoint(path, dtype=dtype, device=device)
        with torch.device("meta"):
            drafter = cls(config)
        drafter.load_state_dict(tensors, assign=True)
        return drafter.eval()

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Writes `config.json` and `model.safetensors` in Apple's layout, each atomically, creating `path`."""
        save_checkpoint(path, self.config, self.state_dict())

    def set_draft_tokens(self, target_ids: Tensor) -> None:
        """Makes `target_ids` [D], strictly increasing, the draft vocabulary; the output layer is not changed.

        Raises ValueError without a draft vocabulary, for another number of ids, and for ids out of order or range.
        """
        if self.config.draft_vocab_size is None or tuple(target_ids.shape) != (self.config.draft_vocab_size,):
            raise ValueError(
                f"target ids of shape {list(target_ids.shape)} do not fit draft_vocab_size "
                f"{self.config.draft_vocab_size}"
            )
        check_target_ids(target_ids, self.config.vocab_size)
        self.d2t.copy_(to_offsets(target_ids.long()))

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def adopt(self, other: Self) -> None:
        copy_tensors(self.tensors(), other.tensors())

    def features(self, share: Tensor, state: Tensor) -> Tensor:
        if self.config.has_input_proj:
            return self.lm_head[:-1](self._first_product(share, state))
        x = context_and_state(share[..., self.config.first_size :], state)
        if self.config.starts_with_output:
            return x
        return self.lm_head[1:-1](x + silu(self._first_product(share, state)))

    def forward(self, context: Tensor, state: Tensor) -> Tensor:
        """The same as `logits(context_share(context), state)`, with the first linear layer in one product."""
        x = context_and_state(context, state)
        return self.lm_head(self.input_proj(x) if self.config.has_input_proj else x)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the logits."""
        output = self.lm_head[-1]
        assert isinstance(output, nn.Linear)
        return output

    @property
    def first_linear(self) -> nn.Linear:
        """The layer whose input is c ⊕ s, of which the context's half is constant over a round."""
        if self.config.has_input_proj:
            return self.input_proj
        head = self.output if self.config.starts_with_output else self.lm_head[0].linear
        assert isinstance(head, nn.Linear)
        return head

    def _recurrence(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        return self.rnn_w(token_embedding) + self.rnn_u(state)

    def _context_half(self, context: Tensor) -> Tensor:
        first = self.first_linear
        return linear(context, first.weight[:, : self.config.hidden_size], first.bias)

    def _state_half(self, state: Tensor) -> Tensor:
        return linear(state, self.first_linear.weight[:, self.config.hidden_size :])

    def _output_product(self, x: Tensor) -> Tensor:
        return self.output(x)
