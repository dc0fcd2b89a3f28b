# SPDX-License-Identifier: Apache-2.0
"""New beams from their parents, in plain torch."""

from typing import NamedTuple

import torch
from torch import Tensor


class BeamHistory(NamedTuple):
    """The t tokens of each beam so far, and the drafter's state after them."""

    tokens: Tensor  # [B, W, t] int64
    log_probs: Tensor  # [B, W, t] fp32, of each token given those before it
    state: Tensor  # [B, W, H]


def grow_beams(
    history: BeamHistory,
    parents: Tensor,  # [B, W]
    tokens: Tensor,  # [B, W]
    log_probs: Tensor,  # [B, W] fp32
) -> BeamHistory:
    """New beams: each is its parent's history and one more token; the state is the parent's.

    Args:
        history: The beams before the step.
        parents: The beam that each new one continues.
        tokens: The token that each adds.
        log_probs: Of that token alone.
    """
    return BeamHistory(
        torch.cat((_follow(history.tokens, parents), tokens.unsqueeze(-1)), -1),
        torch.cat((_follow(history.log_probs, parents), log_probs.unsqueeze(-1)), -1),
        _follow(history.state, parents),
    )


def _follow(per_beam: Tensor, parents: Tensor) -> Tensor:
    """Row `parent` of `per_beam` [B, W, n] for each new beam: [B, W, n]."""
    return per_beam.gather(1, parents.unsqueeze(-1).expand(-1, -1, per_beam.shape[-1]))
