# SPDX-License-Identifier: Apache-2.0
"""A target's LM head without its body: matrix, bias, and scaling or softcap of the logits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Relative to the largest logit: the error of a wrong rule is far larger, that of rounding far smaller.
TOLERANCE = 0.02


@dataclass(frozen=True)
class LogitRule:
    """logits = softcap · tanh(scale · product / softcap), without `softcap` scale · product."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, product: Tensor) -> Tensor:
        logits = product if self.scale == 1 else product * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class TargetHead:
    """The part of a target that a training needs when the hidden states are already computed."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    embedding: Tensor  # [V, H]
    rule: LogitRule = LogitRule()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] in any type to [..., V], in the head's type, or autocast's where it is on."""
        return self.rule(linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def restricted(self, tokens: Tensor | None) -> "TargetHead":
        """The same with logits of `tokens` [D] only, [..., D]; None means all."""
        if tokens is None:
            return self
        return replace(self, weight=self.weight[tokens], bias=None if self.bias is None else self.bias[tokens])

    def to(self, device: torch.device) -> "TargetHead":
        """On `device`; a tied embedding stays one tensor."""
        weight = self.weight.to(device)
        embedding = weight if self.embedding is self.weight else self.embedding.to(device)
        return replace(
            self, weight=weight, bias=None if self.bias is None else self.bias.to(device), embedding=embedding
        )


def find_rule(config: Any, raw: Tensor, logits: Tensor, name: str) -> LogitRule:
    """The rule by which a model of `config` computes its `logits` from the head's product `raw`, both [..., V].

    Some model families multiply by the number that others divide by; the rule that reproduces `logits` is chosen.

    Raises:
        ValueError: no known rule gives these logits; `name` is the model's, for the message.
    """
    if raw.shape == logits.shape:
        raw, logits = raw.float(), logits.float()
        bound = TOLERANCE * float(logits.abs().max())
        for rule in _candidates(config):
            if float((rule(raw) - logits).abs().max()) <= bound:
                return rule
    raise ValueError(
        f"{name} changes its logits by more than a scale or a softcap, so the LM head alone cannot reproduce them: "
        "train without --hidden-cache"
    )


def _candidates(config: Any) -> Iterator[LogitRule]:
    scales = [1.0]
    for key in ("logits_scaling", "logit_scale", "output_multiplier"):
        value = getattr(config, key, None)
        if isinstance(value, int | float) and value and math.isfinite(value):
            scales += [float(value), 1 / float(value)]
    cap = next((c for key in ("final_logit_softcapping", "logits_soft_cap") if (c := getattr(config, key, None))), None)
    for softcap, scale in product([None] if cap is None else [float(cap), None], scales):
        yield LogitRule(scale, softcap)
