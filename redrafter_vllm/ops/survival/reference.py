# SPDX-License-Identifier: Apache-2.0
"""Plain-torch estimates of the probability that the walk reaches a node; `adaptive.survival` has the model.

Nothing is added up over requests, so that a result does not depend on the order in which they are computed: every rank
of a parallel target must get the same bits.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

MOST_SAVED = 0.5  # steps per token of a request, by one node: by a first one that is certain
MAX_LOG_ODDS = 10.0  # a drafter that is surer than this is not told from one that is this sure
OFFSET_RATE = 0.2  # of a request's offset, by accepted node more than was expected
OFFSET_DECAY = 0.99  # of an offset, by round: what a request did long ago is forgotten


class Sums(NamedTuple):
    """Sums over graded nodes, by kind [K]: of the Hessian's entries, of the gradient's, and their number.

    The design row of a node is (x, 1 at its kind), so the Hessian is an arrowhead: one entry for the slope, one for
    each intercept, and one for each intercept with the slope.
    """

    slope_slope: Tensor
    slope_intercept: Tensor
    intercept_intercept: Tensor
    slope_gradient: Tensor
    intercept_gradient: Tensor
    graded: Tensor


NUM_SUMS = len(Sums._fields)


class Estimates(NamedTuple):
    """Coefficients, and by persistent row (P of them) what was estimated of its tree; fp32 but for the kinds.

    A node's kind is its depth − 1. With `copies` the last beam of every step copies the text, and all such nodes are of
    the last kind; what the drafter's odds are multiplied by says nothing about theirs, so their slope is 1.
    """

    slope: Tensor  # [1]
    intercepts: Tensor  # [K], by kind
    offsets: Tensor  # [P]
    kinds: Tensor  # [P, N] int64, of the stored tree's nodes
    log_odds: Tensor  # [P, N], what the slope is multiplied by: 0 for a copy
    log_survival: Tensor  # [P, N]
    sums: Tensor  # [P, NUM_SUMS, K] over the row's graded nodes since the last fit, as in `Sums`
    copies: bool = False

    @property
    def copy_kind(self) -> int:
        """The kind of copies of the text; −1, which no node has, without them."""
        return len(self.intercepts) - 1 if self.copies else -1


def rank_beams(estimates: Estimates, log_probs: Tensor, parents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The log-odds of every beam's last token given the beam it continues, and the log-survival of every beam.

    Args:
        estimates: Read.
        log_probs: [B, T, W] fp32, the drafter's, of whole beams; −inf where there is none.
        parents: [B, T, W] int64, the beam of the step before.
        rows: [B] int64, the requests' rows.

    Returns:
        Two tensors [B, T, W] fp32; a beam never survives its parent. The log-survival of none is −inf.
    """
    log_odds = log_odds_given_parent(log_probs, parents)
    kind_TW = kinds_of_beams(estimates, log_probs.shape[1], log_probs.shape[2])
    slope_W = estimates.slope.repeat(log_probs.shape[2])
    if estimates.copies:
        slope_W[-1] = 1
    bias_BTW = estimates.intercepts[kind_TW] + OFFSET_DECAY * estimates.offsets[rows, None, None]
    own = logsigmoid(slope_W * log_odds + bias_BTW).masked_fill(log_probs == -torch.inf, -torch.inf)
    survival = [own[:, 0]]
    for step in range(1, own.shape[1]):
        survival.append(own[:, step] + survival[-1].gather(1, parents[:, step]))
    return log_odds, torch.stack(survival, 1)


def kinds_of_beams(estimates: Estimates, length: int, width: int) -> Tensor:
    """The kind of a node of each beam, [T, W] int64. Beyond the last depth there are only copies."""
    deepest = len(estimates.intercepts) - 1 - estimates.copies
    kind_T1 = torch.arange(length, device=estimates.slope.device).clamp(max=deepest)[:, None]
    kind_TW = kind_T1.repeat(1, width)
    if estimates.copies:
        kind_TW[:, -1] = estimates.copy_kind
    return kind_TW


def log_odds_given_parent(log_probs: Tensor, parents: Tensor) -> Tensor:
    """The drafter's log(p / (1 − p)) of every beam's last token given the beam that it continues. [B, T, W]"""
    above = torch.zeros_like(log_probs)
    if log_probs.shape[1] > 1:
        above[:, 1:] = log_probs[:, :-1].gather(2, parents[:, 1:])
    log_p = (log_probs - above).clamp(max=0)
    return (log_p - torch.log(-torch.expm1(log_p))).nan_to_num(nan=-MAX_LOG_ODDS).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def keep_tree(
    estimates: Estimates,
    drawn: Tensor,
    beams: Tensor,
    log_survival: Tensor,
    num_nodes: Tensor,
    node_budget: Tensor,
    rows: Tensor,
    confidences: Tensor,
) -> None:
    """Keep what was estimated for the trees of a round, until they are graded. A round also decays its rows' offsets.

    Args:
        estimates: Written, at `rows`. Several requests may have the same row if it is never graded.
        drawn: [B or more, T, W] log-odds of the round's beams; rows beyond B are not read.
        beams: [B, N] int64, step · W + the beam of that step, of every node.
        log_survival: [B, N] of the nodes.
        num_nodes: [B] int64, of each tree.
        node_budget: [B] int64, nodes that the next step may verify.
        rows: [B] int64.
        confidences: [B, N] fp32. vLLM multiplies these along a row and admits the nodes with the largest products. So
            each is what a node saves over what the node before it in the list saves, at most 1, and 0 where there is
            no node. What it saves are steps per token of its request, as a share of `MOST_SAVED`.
    """
    estimates.offsets[rows] *= OFFSET_DECAY
    kind_M = kinds_of_beams(estimates, *drawn.shape[1:]).flatten()
    estimates.kinds[rows] = kinds = kind_M[beams]
    log_odds = drawn.flatten(1).gather(1, beams)
    estimates.log_odds[rows] = log_odds.masked_fill(kinds == estimates.copy_kind, 0)
    estimates.log_survival[rows] = log_survival
    is_node = torch.arange(beams.shape[1], device=beams.device) < torch.minimum(num_nodes, node_budget)[:, None]
    survival = log_survival.exp().where(is_node, 0)
    tokens = 1 + survival.cumsum(1)
    saved = survival / (tokens * (tokens - survival))
    before = torch.cat([torch.full_like(saved[:, :1], MOST_SAVED), saved[:, :-1]], 1)
    confidences.copy_((saved / before).nan_to_num(nan=0.0).clamp(max=1))


def grade_nodes(estimates: Estimates, rows: Tensor, parents: Tensor, valid: Tensor, path: Tensor) -> None:
    """Add the nodes of one step's trees to their rows' sums, and move the rows' offsets.

    A node is graded where its parent was accepted and it had a row.

    Args:
        estimates: `sums` and `offsets` are written, at `rows`.
        rows: [B] int64, all different.
        parents: [B, N] int64, −1 under the root.
        valid: [B, N] bool, whether the node was verified.
        path: [B, T] int64, the accepted nodes, then −1.
    """
    # Column 0 is the root, which always is accepted; entries of −1 mark it.
    is_accepted_B1N = torch.zeros(path.shape[0], 1 + valid.shape[1], dtype=torch.bool, device=path.device)
    is_accepted_B1N[:, 0] = True
    is_accepted_B1N.scatter_(1, path + 1, True)
    is_graded_BN = valid & is_accepted_B1N.gather(1, parents + 1)
    is_accepted_BN = is_accepted_B1N[:, 1:]

    log_survival = estimates.log_survival[rows]
    above = torch.cat([torch.zeros_like(log_survival[:, :1]), log_survival], 1).gather(1, parents + 1)
    given_parent_BN = (log_survival - above).exp().nan_to_num(nan=0.0)
    probability_BN = given_parent_BN.masked_fill(~is_graded_BN, 0)
    weight_BN = probability_BN * (1 - probability_BN)
    residual_BN = (is_accepted_BN & is_graded_BN).float() - probability_BN
    # The same rate however many nodes were graded: these are more after good news, which would then count less.
    estimates.offsets[rows] += OFFSET_RATE * residual_BN.sum(1)

    x_BN = estimates.log_odds[rows]
    terms = Sums(
        slope_slope=weight_BN * x_BN * x_BN,
        slope_intercept=weight_BN * x_BN,
        intercept_intercept=weight_BN,
        slope_gradient=residual_BN * x_BN,
        intercept_gradient=residual_BN,
        graded=is_graded_BN.float(),
    )
    is_of_BNK = one_hot(estimates.kinds[rows], estimates.sums.shape[2]).float()
    estimates.sums[rows] += torch.einsum("sbn,bnk->bsk", torch.stack(terms), is_of_BNK)
