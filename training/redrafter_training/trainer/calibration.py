# SPDX-License-Identifier: Apache-2.0
"""How far a drafter's probabilities are to be believed: where the estimates of adaptive serving start.

The model is that of `redrafter_vllm.adaptive.survival`, without offsets of requests.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, drafted_everywhere, graded_nodes
from redrafter_vllm.adaptive.survival import Coefficients
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.survival import log_odds_given_parent

PRIOR = 20.0  # weight of slope 1 and intercepts 0; a graded node weighs p (1 - p), at most 1/4
ITERATIONS = 30


def calibrate(
    target: TargetModel, drafter: DrafterInterface, texts: Sequence[tuple[Tensor, int]], drafting: Drafting
) -> Coefficients:
    """Coefficients fitted on the nodes that the walk grades at every position of `texts`.

    Each text is a prompt with its continuation [n], and the prompt's length.
    """
    parts = [_graded(target, drafter, text, start, drafting) for text, start in texts if len(text) - start >= 2]
    if not parts:
        return Coefficients()
    log_odds, depths, is_accepted = (torch.cat(column) for column in zip(*parts, strict=True))
    return fit(log_odds, depths, is_accepted, drafting.beam_length)


@torch.inference_mode()
def _graded(
    target: TargetModel, drafter: DrafterInterface, text: Tensor, start: int, drafting: Drafting
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds, depth and acceptance of the graded nodes of one text, each [nodes]."""
    beams, future = drafted_everywhere(target, drafter, target.hidden(text[None])[0], text, start, drafting)
    tree = DraftTree.from_beams(beams, drafting.max_nodes)
    is_graded, is_accepted = graded_nodes(tree, future)
    log_odds = log_odds_given_parent(beams.log_probs, beams.parents).flatten(1).gather(1, tree.beams)
    return log_odds[is_graded], tree.depths[is_graded], is_accepted[is_graded]


def fit(log_odds: Tensor, depths: Tensor, is_accepted: Tensor, length: int) -> Coefficients:
    """Logistic regression by Newton's method: a slope, and an intercept for each depth from 1 to `length`.

    Where there is little to learn from, the result stays near slope 1 and intercepts 0.
    """
    design = torch.zeros(len(log_odds), 1 + length, dtype=torch.float64, device=log_odds.device)
    design[:, 0] = log_odds
    design[torch.arange(len(depths), device=depths.device), depths] = 1
    prior = torch.zeros(1 + length, dtype=torch.float64, device=log_odds.device)
    prior[0] = 1
    coefficients = prior
    for _ in range(ITERATIONS):
        p = torch.sigmoid(design @ coefficients)
        gradient = design.T @ (is_accepted.double() - p) + PRIOR * (prior - coefficients)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + PRIOR * torch.eye(1 + length).to(design)
        coefficients = coefficients + torch.linalg.solve(hessian, gradient)
    slope, *intercepts = coefficients.tolist()
    return Coefficients(max(slope, 0.01), tuple(intercepts))
