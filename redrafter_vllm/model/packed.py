# SPDX-License-Identifier: Apache-2.0
"""A drafter's weights laid out for drafting: contiguous, and each read once a step.

- W and U are one matrix over (embedding, state): one product a step instead of two. Or W is not read at all: its
  product with the whole embedding is a table [V, H], from which a step takes rows (`project_embedding`).
- The context's and the state's half of the first linear layer are separate matrices.

The caller chooses how a product is computed, so that serving can use kernels with their own layout or type.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from redrafter_vllm.checkpoint.vocab_mapping import MAP
from redrafter_vllm.model.drafter import Drafter, DrafterBase, ResBlock, context_and_state, copy_tensors
from redrafter_vllm.ops.recurrence import add_tokens, tokens_and_state
from redrafter_vllm.ops.residual import first_residual, residual


class Linear(Protocol):
    """A product [..., K] -> [..., N] with a weight and an optional bias."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """The product with `x`."""

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, as far as they are tensors, by name."""

    def adopt(self, other: Any, /) -> None:
        """Take over the weights of `other`, made in the same way from weights of the same shapes."""


MakeLinear = Callable[[Tensor, Tensor | None], Linear]  # from a weight [N, K] and a bias [N] or None

# Rows of the embedding that are multiplied by W at once, so that the table is the only memory needed.
_ROWS_AT_ONCE = 8192


class PlainLinear:
    """torch's product with the given tensors."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, /) -> Tensor:
        return linear(x, self.weight, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def adopt(self, other: "PlainLinear", /) -> None:
        copy_tensors(self.tensors(), other.tensors())


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """torch's product."""
    return PlainLinear(weight, bias)


class PackedDrafter(DrafterBase):
    """Drafts as the `Drafter` that it is made from. It is no module: train and save that `Drafter`.

    With `project_embedding`, `token_inputs` is the table E·Wᵀ and not the embedding; `next_state` takes its rows. It
    costs the memory of another embedding, V·H numbers, and saves reading the H² numbers of W at every step.

    `adopt` takes a drafter packed in the same way; each product decides whether it keeps its memory.
    """

    def __init__(
        self, drafter: Drafter, make_linear: MakeLinear = plain_linear, *, project_embedding: bool = False
    ) -> None:
        self.config = config = drafter.config
        self._dtype = drafter.dtype
        if config.draft_vocab_size is not None:
            self.d2t = drafter.d2t
        hidden = config.hidden_size
        self._token_weight: Tensor | None = None
        with torch.no_grad():
            if config.rnn:
                token_weight, state_weight = drafter.rnn_w.weight.detach(), drafter.rnn_u.weight.detach()
                if project_embedding:
                    self._token_weight = token_weight
                else:
                    state_weight = torch.cat((token_weight, state_weight), 1)
                self._recurrent_linear = make_linear(state_weight, drafter.rnn_u.bias.detach())
            first = drafter.first_linear
            bias = None if first.bias is None else first.bias.detach()
            self._context_linear = make_linear(first.weight[:, :hidden].detach().contiguous(), bias)
            self._state_linear = make_linear(first.weight[:, hidden:].detach().contiguous(), None)
            blocks = [block.linear for block in drafter.lm_head if isinstance(block, ResBlock)]
            self._later_linears = [
                make_linear(block.weight.detach(), block.bias.detach()) for block in blocks if block is not first
            ]
            if not config.starts_with_output:
                self._output_linear = make_linear(drafter.output.weight.detach(), None)

    def tensors(self) -> dict[str, Tensor]:
        found = self._map()
        if self._token_weight is not None:
            found["token_weight"] = self._token_weight
        for name, product in self._products().items():
            found |= {f"{name}.{part}": tensor for part, tensor in product.tensors().items()}
        return found

    def adopt(self, other: Self) -> None:
        copy_tensors(self._map(), other._map())
        if self._token_weight is not None and other._token_weight is not None:
            self._token_weight.copy_(other._token_weight)
        for own, new in zip(self._products().values(), other._products().values(), strict=True):
            own.adopt(new)

    def _map(self) -> dict[str, Tensor]:
        return {} if self.config.draft_vocab_size is None else {MAP: self.d2t}

    def _products(self) -> dict[str, Linear]:
        later = {f"later_{index}": product for index, product in enumerate(self._later_linears)}
        single = {name: getattr(self, f"_{name}_linear", None) for name in ("recurrent", "context", "state", "output")}
        return {name: product for name, product in single.items() if product is not None} | later

    def token_inputs(self, embedding: Tensor, out: Tensor | None = None) -> Tensor:
        if self._token_weight is None:
            return embedding
        table = torch.empty_like(embedding, dtype=self._dtype) if out is None else out
        for start in range(0, len(embedding), _ROWS_AT_ONCE):
            rows = embedding[start : start + _ROWS_AT_ONCE].to(self._dtype)
            torch.mm(rows, self._token_weight.T, out=table[start : start + _ROWS_AT_ONCE])
        return table

    def advance(self, state: Tensor, tokens: Tensor, inputs: Tensor) -> Tensor:
        if not self.config.rnn:
            return super().advance(state, tokens, inputs)
        if self._token_weight is not None:
            return add_tokens(self._recurrent_linear(state), inputs, tokens)
        return silu(self._recurrent_linear(tokens_and_state(inputs, tokens, state)))

    def features(self, share: Tensor, state: Tensor) -> Tensor:
        config = self.config
        if config.has_input_proj:
            x = self._first_product(share, state)
        elif config.starts_with_output:
            return context_and_state(share[..., config.first_size :], state)
        else:
            first, context = share[..., : config.first_size], share[..., config.first_size :]
            x = first_residual(self._state_half(state), state, first, context)
        for product in self._later_linears:
            x = residual(product(x), x)
        return x

    def __call__(self, context: Tensor, state: Tensor) -> Tensor:
        """The same as `logits(context_share(context), state)`: the halves of the first linear layer stay separate."""
        return self.logits(self.context_share(context), state)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def _recurrence(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        if self._token_weight is not None:
            return token_embedding + self._recurrent_linear(state)
        return self._recurrent_linear(torch.cat((token_embedding, state), -1))

    def _context_half(self, context: Tensor) -> Tensor:
        return self._context_linear(context)

    def _state_half(self, state: Tensor) -> Tensor:
        return self._state_linear(state)

    def _output_product(self, x: Tensor) -> Tensor:
        return self._output_linear(x)
