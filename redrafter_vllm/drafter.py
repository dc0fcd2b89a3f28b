# SPDX-License-Identifier: Apache-2.0
"""The recurrent drafter of arXiv 2403.09919, section 3: a one-layer RNN over the drafted tokens and a residual head."""

from dataclasses import dataclass
from os import PathLike
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a drafter; the names are those of Apple's `config.json`.

    Raises ValueError for sizes that are not positive integers (`num_draft_layers` may be 0) and for an `rnn` that is
    not a boolean.
    """

    vocab_size: int
    hidden_size: int
    exit_dim: int
    num_draft_layers: int
    rnn: bool = True

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("hidden_size", 1), ("exit_dim", 1), ("num_draft_layers", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        if type(self.rnn) is not bool:
            raise ValueError(f"rnn must be true or false, not {self.rnn!r}")

    @property
    def has_input_proj(self) -> bool:
        return self.exit_dim != 2 * self.hidden_size


class ResBlock(nn.Module):
    """x + silu(L·x + b), [..., exit_dim] -> [..., exit_dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + silu(self.linear(x))


class Drafter(nn.Module):
    """Predicts the next tokens from the target's last hidden state `c` and the tokens drafted since.

    s_0 = 0, s_t = silu(W·E(g_{t-1}) + U·s_{t-1} + b), or s_{t-1} + E(g_{t-1}) when `rnn` is false, and
    logits_t = LMHead(ResBlocks(c ⊕ s_t)), with E the target's embedding. Because `c` does not change during a round,
    its product with the first linear layer is computed once, by `context_share`, and `logits` adds the state's part.

    Parameter names are those of Apple's checkpoints.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_input_proj:
            self.input_proj = nn.Linear(2 * config.hidden_size, config.exit_dim)
        self.lm_head = nn.Sequential(
            *(ResBlock(config.exit_dim) for _ in range(config.num_draft_layers)),
            nn.Linear(config.exit_dim, config.vocab_size, bias=False),
        )
        if config.rnn:
            self.rnn_u = nn.Linear(config.hidden_size, config.hidden_size)
            self.rnn_w = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """Loads a checkpoint directory in any of the spellings in circulation; see `redrafter_vllm.checkpoint`.

        Raises a `CheckpointError` that says what is wrong, where, and what to do about it.
        """
        from redrafter_vllm.checkpoint import load_checkpoint

        config, tensors = load_checkpoint(path, dtype=dtype, device=device)
        with torch.device("meta"):
            drafter = cls(config)
        drafter.load_state_dict(tensors, assign=True)
        return drafter.eval()

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Writes `config.json` and `model.safetensors` in Apple's layout, each atomically, creating `path`."""
        from redrafter_vllm.checkpoint import save_checkpoint

        save_checkpoint(path, self.config, self.state_dict())

    def initial_state(self, context: Tensor) -> Tensor:
        """s_0 for `context` [..., H]: zeros [..., H]."""
        return torch.zeros_like(context)

    def next_state(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        """s_t from s_{t-1} [..., H] and E(g_{t-1}) [..., H]."""
        if not self.config.rnn:
            return state + token_embedding
        return silu(self.rnn_w(token_embedding) + self.rnn_u(state))

    def context_share(self, context: Tensor) -> Tensor:
        """What `context` [..., H] contributes to every step of a round: [..., S], an opaque input of `logits`.

        The first S' entries are the context's half of the first linear layer, bias included. Without an input
        projection that layer sits inside the first ResBlock, whose skip also needs the context: it is appended.
        """
        first = self._first_linear
        share = linear(context, first.weight[:, : self.config.hidden_size], first.bias)
        return torch.cat((share, context), -1) if self._starts_with_block else share

    def logits(self, share: Tensor, state: Tensor) -> Tensor:
        """Next-token logits [..., V] for a `context_share` [..., S] and a state [..., H].

        The leading dimensions broadcast; a `share` with one dimension less than `state` serves all beams:
        [B, S] with [B, W, H] gives [B, W, V].
        """
        if share.dim() < state.dim():
            share = share.unsqueeze(-2)
        first = self._first_linear
        x = share[..., : first.out_features] + linear(state, first.weight[:, self.config.hidden_size :])
        if self.config.has_input_proj:
            return self.lm_head(x)
        if not self._starts_with_block:
            return x
        skip = torch.cat(torch.broadcast_tensors(share[..., first.out_features :], state), -1)
        return self.lm_head[1:](skip + silu(x))

    def forward(self, context: Tensor, state: Tensor) -> Tensor:
        """What `logits(context_share(context), state)` computes, with the first linear layer in one piece."""
        if context.dim() < state.dim():
            context = context.unsqueeze(-2)
        x = torch.cat(torch.broadcast_tensors(context, state), -1)
        return self.lm_head(self.input_proj(x) if self.config.has_input_proj else x)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def _starts_with_block(self) -> bool:
        return not self.config.has_input_proj and self.config.num_draft_layers > 0

    @property
    def _first_linear(self) -> nn.Linear:
        if self.config.has_input_proj:
            return self.input_proj
        head = self.lm_head[0].linear if self._starts_with_block else self.lm_head[0]
        assert isinstance(head, nn.Linear)
        return head
