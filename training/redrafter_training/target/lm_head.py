# SPDX-License-Identifier: Apache-2.0
"""A target's LM head apart from its body: matrix, bias, and what its model does to the product."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Relative to the largest logit: a wrong rule is off by far more, two ways of rounding by far less.
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
    """All that a training needs of a target whose hidden states are at hand."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    embedding: Tensor  # [V, H]
    rule: LogitRule = LogitRule()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] in any type to [..., V], in the head's type, or autocast's where it is on."""
        return self.rule(linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def to(self, device: torch.device) -> "TargetHead":
        """On `device`; a tied embedding stays one tensor."""
        weight = self.weight.to(device)
        embedding = weight if self.embedding is self.weight else self.embedding.to(device)
        return replace(
            self, weight=weight, bias=None if self.bias is None else self.bias.to(device), embedding=embedding
        )


def find_rule(config: Any, raw: Tensor, logits: Tensor, name: str) -> LogitRule:
    """The rule by which a model of `config` makes its `logits` from the head's product `raw`, both [..., V].

    Some families multiply by the number that others divide by, so that the rule is chosen by what it gives.

    Raises:
        ValueError: no rule known here gives these logits; `name` is the model's.
    """
    if raw.shape == logits.shape:
        raw, logits = raw.float(), logits.float()
        bound = TOLERANCE * float(logits.abs().max())
        for rule in _candidates(config):
            if float((rule(raw) - logits).abs().max()) <= bound:
                return rule
    raise ValueError(
        f"{name} does more to its logits than to scale or to softcap the product of its LM head; with the head alone "
        "they cannot be reproduced: train without --hidden-cache"
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
