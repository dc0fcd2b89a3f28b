# SPDX-License-Identifier: Apache-2.0
"""The frozen target that a drafter learns from: hidden states, logits and embedding of a causal language model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from redrafter_training.target.lm_head import TargetHead, find_rule
from redrafter_training.target.packed_attention import Borders, by_positions

PROBED_TOKENS = 16


@dataclass(frozen=True)
class TargetOutputs:
    """What a drafter learns from at every position p of windows of tokens: the prediction is that of token p + 1."""

    hidden: Tensor  # [B, L, H], the input of the LM head
    logits: Tensor  # [B, L, V], or [B, L, D] over a draft vocabulary
    top1_ids: Tensor  # [B, L], the likeliest token of the whole vocabulary


class Target(ABC):
    """A target as the training loop uses it, whether its hidden states are computed or read."""

    embedding: Tensor  # [V, H]
    stores_states = False  # whether it has `states`

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """The LM head's matrix [V, H]."""

    @abstractmethod
    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        """Hidden states and predictions of `tokens` [B, L]; padding, if any, is at the end of rows.

        Args:
            positions: [B, L], start at 0 in every document of a row; None means one document per row.
            draft_tokens: [D], the tokens whose logits are wanted; None means all.
        """

    def states(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L, H] and likeliest tokens [B, L] of `outputs`, in the CPU's memory."""
        raise NotImplementedError(f"{type(self).__name__} does not store hidden states")

    def outputs_from(self, hidden: Tensor, top1_ids: Tensor, draft_tokens: Tensor | None = None) -> TargetOutputs:
        """`outputs` from any rows of `states`."""
        raise NotImplementedError(f"{type(self).__name__} does not store hidden states")

    @property
    def vocab_size(self) -> int:
        return int(self.head_weight.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.head_weight.shape[1])

    @property
    def device(self) -> torch.device:
        return self.embedding.device


class TargetModel(Target):
    """Any Hugging Face causal language model, used for inference only.

    Its hidden states are captured at the input of the LM head, where a serving engine passes them to the drafter,
    whatever norm or scaling the architecture has before or after. The logits are the model's own. Layers may be on
    several devices; tokens and outputs are on the embedding's device.

    Raises:
        ValueError: the model has no LM head or no input embedding of its hidden size in floating point and in memory.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        name = type(model).__name__
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if model.config.is_encoder_decoder:
            raise ValueError(f"{name} is an encoder-decoder model; a drafter needs a decoder-only language model")
        if head is None or embedding is None:
            raise ValueError(f"{name} has no LM head or no input embedding to train a drafter for")
        _check_matrix(head, "LM head", name)
        _check_matrix(embedding, "input embedding", name)
        if embedding.weight.shape[1] != head.weight.shape[1]:
            raise ValueError(
                f"{name} embeds tokens in {embedding.weight.shape[1]} dimensions and its LM head takes "
                f"{head.weight.shape[1]}: the drafter adds both and needs equal dimensions"
            )
        self.model = model.eval().requires_grad_(False)
        self.embedding: Tensor = embedding.weight.detach()
        self._head = head
        self.borders: Borders = by_positions  # arguments for packed rows; see `show_borders`

    @property
    def vocab_size(self) -> int:
        return int(self._head.weight.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self._head.weight.shape[1])

    @property
    def head_weight(self) -> Tensor:
        """The LM head's matrix [V, H]; a copy if the head is on another device than the embedding."""
        return self._head.weight.detach().to(self.device)

    @torch.no_grad()
    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        """One forward pass; see `Target`.

        Raises:
            ValueError: the input of the model's LM head is not one hidden state per token.
        """
        borders = {} if positions is None else self.borders(positions.to(self.device), self.model.dtype)
        with self._at_the_head(lambda hidden: hidden) as caught:
            logits = self.model(input_ids=tokens.to(self.device), use_cache=False, **borders).logits
        logits = logits.to(self.device)
        top1_ids = logits.max(-1).indices  # argmax of bfloat16 is slow on a CPU
        wanted = logits if draft_tokens is None else logits.index_select(-1, draft_tokens)
        return TargetOutputs(self._one_per_token(caught, tokens), wanted, top1_ids)

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """The hidden states of `outputs` [B, L, H], without computing logits.

        Raises:
            ValueError: as `outputs`.
        """
        with self._at_the_head(lambda hidden: hidden[..., :0, :]) as caught:
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        return self._one_per_token(caught, tokens)

    def head(self) -> TargetHead:
        """Head and embedding without the body.

        Raises:
            ValueError: they do not reproduce the model's logits; see `find_rule`.
        """
        weight = self.head_weight
        tied = weight.data_ptr() == self.embedding.data_ptr()
        bias = getattr(self._head, "bias", None)
        plain = TargetHead(
            weight, None if bias is None else bias.detach().to(self.device), weight if tied else self.embedding
        )
        tokens = torch.arange(min(PROBED_TOKENS, len(self.embedding)), device=self.device)[None]
        probed = self.outputs(tokens)
        described = self.model.config.get_text_config()
        rule = find_rule(described, plain.logits(probed.hidden), probed.logits, type(self.model).__name__)
        return TargetHead(plain.weight, plain.bias, plain.embedding, rule)

    @contextmanager
    def _at_the_head(self, give: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
        """Captures the head's inputs, and replaces each with the result of `give`."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(args[0])
            return (give(args[0]), *args[1:])

        handle = self._head.register_forward_pre_hook(catch)
        try:
            yield caught
        finally:
            handle.remove()

    def _one_per_token(self, caught: list[Tensor], tokens: Tensor) -> Tensor:
        wanted = (*tokens.shape, self.hidden_size)
        if [tuple(hidden.shape) for hidden in caught] != [wanted]:
            raise ValueError(
                f"the LM head of {type(self.model).__name__} gets {[list(hidden.shape) for hidden in caught]} for "
                f"tokens {list(tokens.shape)}, not one hidden state [{self.hidden_size}] per token: no drafter can be "
                "trained for it"
            )
        return caught[0].to(self.device)


class DeferredTarget(TargetModel):
    """A target that is loaded on first use and can be released."""

    def __init__(self, load: Callable[[], TargetModel]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name == "_load" or name.startswith("__"):
            raise AttributeError(name)
        for key, value in vars(self._load()).items():
            self.__dict__.setdefault(key, value)
        return object.__getattribute__(self, name)

    def release(self) -> None:
        """Frees its memory; the next use loads it again."""
        for key in [key for key, value in vars(self).items() if isinstance(value, Tensor | nn.Module)]:
            del self.__dict__[key]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _check_matrix(module: nn.Module, what: str, name: str) -> None:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError(f"{name}'s {what} is not a matrix")
    if weight.is_meta:
        raise ValueError(f"{name}'s {what} has been moved out of memory: use more GPUs for the target, or quantise it")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(
            f"{name}'s {what} is quantised ({str(weight.dtype).removeprefix('torch.')}); a drafter needs it in "
            "floating point: exclude it from the quantisation"
        )
