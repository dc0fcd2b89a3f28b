# SPDX-License-Identifier: Apache-2.0
"""Tests whether a target keeps the documents of a packed row apart, and with which arguments."""

import torch

from redrafter_training.target.model import TargetModel
from redrafter_training.target.packed_attention import by_mask, by_positions

PROBED = (
    (5, 9),
    (8, 6),
)  # lengths of the documents in each row of the probe; two rows, as some kernels pack only one row
TOLERANCE = 0.05  # of the hidden states' norm: above the rounding of bfloat16, far below what a neighbour changes


def show_borders(target: TargetModel) -> bool:
    """Sets `target.borders` to arguments that keep documents apart; False if none do.

    A packed row must give the hidden states that its documents give alone. A recurrent target carries its state across
    every border, so that none do.
    """
    # The mask of `by_mask` would replace that of a sliding window.
    slides = getattr(target.model.config.get_text_config(), "sliding_window", None) is not None
    for way in (by_positions,) if slides else (by_positions, by_mask):
        target.borders = way
        try:
            if _keeps_apart(target):
                return True
        except (TypeError, ValueError, RuntimeError):  # the target does not take these arguments
            continue
    target.borders = by_positions
    return False


def _keeps_apart(target: TargetModel) -> bool:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(target.vocab_size, (len(PROBED), sum(PROBED[0])), generator=generator).to(target.device)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in PROBED]).to(target.device)
    packed = target.outputs(tokens, positions).hidden
    for row, lengths in enumerate(PROBED):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for length, end in zip(lengths, ends, strict=True):
            alone = target.outputs(tokens[row : row + 1, end - length : end]).hidden[0].float()
            distance = (packed[row, end - length : end].float() - alone).norm()
            if not distance <= TOLERANCE * alone.norm():
                return False
    return True
