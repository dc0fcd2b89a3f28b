# SPDX-License-Identifier: Apache-2.0
"""Keeps the beams that a step has chosen, in plain torch."""

from typing import NamedTuple

from torch import Tensor

from redrafter_vllm.ops.beam_step.reference import BeamStep


class BeamHistory(NamedTuple):
    """The beams of every step, best first within a step; contiguous, written step by step."""

    scores: Tensor  # [B, T, W] fp32, log-probability of the whole beam
    parents: Tensor  # [B, T, W] int64, the beam of the step before that each one continues
    tokens: Tensor  # [B, T, W] int64, the last one of each beam


def grow_beams(
    history: BeamHistory,
    chosen: BeamStep,
    state: Tensor,  # [B, W, H], or [B, 1, H] where all parents are 0
    step: int,
) -> Tensor:
    """Writes the beams chosen at `step` (0 is the first) into `history`; returns their parents' states, [B, W, H].

    `state` is that of the beams of the step before, of which there is one at the first step.
    """
    for kept_BTW, new_BW in zip(history, chosen, strict=True):
        kept_BTW[:, step] = new_BW
    return state.gather(1, chosen.parents.unsqueeze(-1).expand(-1, -1, state.shape[2]))
