# SPDX-License-Identifier: Apache-2.0
"""One step of beam search in plain torch: the best continuations of the beams."""

from typing import NamedTuple

import torch
from torch import Tensor

_FEW = 128  # values that are sorted faster than searched


class BeamStep(NamedTuple):
    """The best W continuations of W beams, best first."""

    scores: Tensor  # [B, W] fp32, log-probability of the whole beam
    parents: Tensor  # [B, W] int64, the beam that each one continues
    tokens: Tensor  # [B, W] int64, column of the logits, or the target's id for it


def beam_step(
    logits: Tensor,  # [B, W, V]
    scores: Tensor | None,  # [B, W] fp32
    logits_top_k: int | None = None,
    id_offsets: Tensor | None = None,  # [V]
) -> BeamStep:
    """Scores and ranks the W·V continuations of W beams; V must be at least W.

    `scores` None: all beams are the root alone, so that only one is live, or all would draft the same tokens.

    Within a beam the order is that of its logits, equal ones by ascending column: log-probabilities keep that order,
    except that rounding makes neighbours equal, differently on each device. Between beams the order is that of the
    total, equal ones by beam, then by the order within the beam.

    Args:
        logits: Of the beams, best beam first.
        scores: Log-probabilities of the beams.
        logits_top_k: Renormalises over each beam's highest logits, ties of the last included; at least W.
        id_offsets: What a target's id is above its column.
    """
    beam_width = logits.shape[1]
    logits_BWV = logits.float()
    # The best W of all W·V continuations are among the best W of each beam.
    candidate_BWW = top_k_stable(logits_BWV, beam_width)[1]
    if logits_top_k is not None:
        logits_BWV = _only_top(logits_BWV, logits_top_k)
    step = rank_continuations(scores, candidate_BWW, logits_BWV.log_softmax(-1).gather(-1, candidate_BWW))
    return step if id_offsets is None else step._replace(tokens=step.tokens + id_offsets[step.tokens])


def rank_continuations(scores: Tensor | None, tokens: Tensor, log_probs: Tensor) -> BeamStep:
    """The best W of W·W continuations: W of each beam, its best first, `tokens` and `log_probs` [B, W, W]."""
    beam_width = log_probs.shape[1]
    if scores is None:
        scores = log_probs.new_full(log_probs.shape[:2], -torch.inf)
        scores[:, 0] = 0.0
    total_BWW = scores.unsqueeze(-1) + log_probs
    score_BW, chosen_BW = top_k_stable(total_BWW.flatten(1), beam_width)
    return BeamStep(
        scores=score_BW,
        parents=chosen_BW // beam_width,
        tokens=tokens.flatten(1).gather(1, chosen_BW),
    )


def top_k_stable(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of `values` [..., n] in descending order, and their indices; equal ones by ascending index.

    With `torch.topk` it depends on the device which of several equal values are taken, and in which order.
    """
    if values.shape[-1] <= _FEW:
        ordered = values.sort(dim=-1, descending=True, stable=True)
        return ordered.values[..., :k], ordered.indices[..., :k]
    top, index = values.topk(k, dim=-1)
    lowest = top[..., -1:]
    place = torch.arange(k, device=values.device)
    num_above = (top > lowest).sum(-1, keepdim=True)
    # Of the values equal to the lowest one taken, take those that come first.
    num_ties = (values == lowest).cumsum(-1, dtype=torch.int32)
    wanted_tie = (place - num_above + 1).clamp(min=0).int()
    tie_index = torch.searchsorted(num_ties, wanted_tie).clamp(max=values.shape[-1] - 1)
    index = torch.where(place < num_above, index, tie_index).sort(dim=-1).values
    top, order = values.gather(-1, index).sort(dim=-1, descending=True, stable=True)
    return top, index.gather(-1, order)


def _only_top(logits: Tensor, top_k: int) -> Tensor:
    lowest_kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest_kept, -torch.inf)
