# SPDX-License-Identifier: Apache-2.0
"""Divergence and top-k agreement of a drafter with its target, by depth, on held-out windows.

The divergence cannot be compared with the training loss, which is sharpened and may include labels (`LossConfig`), so
the two have different names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.nn.functional import embedding as lookup

from redrafter_training.data.windows import Windows
from redrafter_training.target.model import Target
from redrafter_training.trainer.loss import num_positions
from redrafter_vllm.model.drafter import Drafter

TOP = 5
CHAIN = "chain_estimate"


@dataclass(frozen=True)
class DepthFigures:
    """Means over positions, by depth 1..T. The truth is the target's prediction, not the text."""

    divergence: tuple[float, ...]  # KL from the target's distribution over the draft vocabulary at temperature 1, nats
    top: tuple[tuple[float, ...], ...]  # [T][k]: fraction with the target's top-1 token among the drafter's top k + 1
    positions: int  # at depth 1

    def named(self) -> dict[str, float]:
        """`redrafter{i}_kl` and `redrafter{i}_top{k}` for every depth i and k from 1 to 5, and `chain_estimate`."""
        named = {}
        for depth, (divergence, top) in enumerate(zip(self.divergence, self.top, strict=True), 1):
            named[f"redrafter{depth}_kl"] = divergence
            named |= {f"redrafter{depth}_top{k}": value for k, value in enumerate(top, 1)}
        return named | {CHAIN: self.chain_estimate}

    @property
    def chain_estimate(self) -> float:
        """Draft tokens of a chain that a step would accept, if agreement at a depth did not depend on the others.

        The chain is accepted down to depth t with the product of the agreements at depths 1..t.
        """
        reached = accumulate((top[0] for top in self.top), mul)
        return sum(reached)


@torch.inference_mode()
def depth_figures(
    drafter: Drafter,
    target: Target,
    windows: Windows,
    beam_length: int,
    *,
    batch_size: int = 4,
    chunk: int = 128,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> DepthFigures:
    """Measures `drafter` on `windows` [B, L], with their tokens as inputs as in training.

    Args:
        total: sums the figures of all processes' shares.
    """
    sums = torch.zeros(beam_length, 2 + TOP, dtype=torch.float64)  # per depth: positions, divergence, hits by rank
    for batch in (windows.rows(rows) for rows in torch.arange(len(windows)).split(batch_size)):
        sums += _batch_sums(drafter, target, batch.to(target.device), beam_length, chunk).cpu()
    sums = total(sums.to(target.device)).cpu()
    means = sums[:, 1:] / sums[:, :1].clamp(min=1)
    top = means[:, 1:].cumsum(1)
    return DepthFigures(tuple(means[:, 0].tolist()), tuple(map(tuple, top.tolist())), int(sums[0, 0]))


def _batch_sums(drafter: Drafter, target: Target, batch: Windows, beam_length: int, chunk: int) -> Tensor:
    outputs = target.outputs(batch.tokens, batch.positions, drafter.draft_tokens)
    embedding = target.embedding.to(drafter.dtype)
    positions = num_positions(batch.tokens.shape[1], beam_length)
    sums = torch.zeros(beam_length, 2 + TOP, dtype=torch.float64, device=batch.tokens.device)
    for first in range(0, positions, chunk):
        last = min(first + chunk, positions)
        context_BPH = outputs.hidden[:, first:last].to(drafter.dtype)
        share_BPS = drafter.context_share(context_BPH)
        state_BPH = drafter.initial_state(context_BPH)
        for t in range(1, beam_length + 1):
            fed = slice(first + t, last + t)
            mask_BP = batch.terms(t, first, last)
            state_BPH = drafter.next_state(state_BPH, lookup(batch.tokens[:, fed], embedding))
            log_q_BPV = drafter.logits(share_BPS, state_BPH).float().log_softmax(-1)
            log_p_BPV = outputs.logits[:, fed].float().log_softmax(-1)
            # -inf in q counts only where p > 0; 0 * inf would be NaN.
            terms_BPV = torch.where(log_p_BPV > -torch.inf, log_p_BPV.exp() * (log_p_BPV - log_q_BPV), 0.0)
            top_BPk = log_q_BPV.topk(min(TOP, log_q_BPV.shape[-1]), dim=-1).indices
            hit_BPk = drafter.target_ids(top_BPk) == outputs.top1_ids[:, fed, None]
            sums[t - 1, 0] += mask_BP.sum()
            sums[t - 1, 1] += (terms_BPV.sum(-1) * mask_BP).sum()
            sums[t - 1, 2 : 2 + hit_BPk.shape[-1]] += (hit_BPk & mask_BP[..., None]).sum((0, 1))
    return sums
