# SPDX-License-Identifier: Apache-2.0
"""What a drafter is taught from: a frozen causal language model's hidden states, logits and embedding."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.borders import Borders, by_positions


@dataclass(frozen=True)
class Signals:
    """What the target says about windows of tokens."""

    hidden: Tensor  # [B, L, H], the input of the LM head
    logits: Tensor  # [B, L, V], row p is about token p + 1


class FrozenTarget:
    """Any Hugging Face causal language model, used for inference only.

    Its hidden states are caught at the entrance of the LM head, which is where a serving engine hands them to the
    drafter, whatever norm or scaling the architecture puts before or after.

    Raises:
        ValueError: the model has no LM head or no input embedding.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is None or embedding is None:
            raise ValueError(f"{type(model).__name__} has no LM head or no input embedding to train a drafter for")
        self.model = model.eval().requires_grad_(False)
        self.embedding: Tensor = embedding.weight.detach()  # [V, H]
        self._head = head
        self.borders: Borders = by_positions  # how packed rows are shown; see `show_borders`

    @property
    def vocab_size(self) -> int:
        return int(self._head.weight.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self._head.weight.shape[1])

    @property
    def head_weight(self) -> Tensor:
        """The LM head's matrix [V, H]."""
        return self._head.weight.detach()

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @torch.no_grad()
    def signals(self, tokens: Tensor, positions: Tensor | None = None) -> Signals:
        """One forward pass over `tokens` [B, L] (padding, if any, at the end of rows).

        `positions` [B, L] begin anew at 0 with every document of a row; without them a row is one document.
        """
        borders = {} if positions is None else self.borders(positions, self.model.dtype)
        caught: list[Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...]) -> None:
            caught.append(args[0])

        handle = self._head.register_forward_pre_hook(catch)
        try:
            logits = self.model(input_ids=tokens, use_cache=False, **borders).logits
        finally:
            handle.remove()
        (hidden,) = caught
        return Signals(hidden, logits)
