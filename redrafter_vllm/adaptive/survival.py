# SPDX-License-Identifier: Apache-2.0
"""The probability that the walk reaches a node of a draft tree, estimated from the drafter's own and corrected online.

A node is accepted, given that its parent is, with probability σ(slope · x + intercept of its depth + offset of its
request), where x is the log-odds log(p / (1 − p)) of the drafter's probability p. Slope 1 and intercepts 0 take the
drafter at its word. A node survives if it and all nodes above it are accepted, so it never survives its parent, and
ranking nodes by survival keeps every prefix of the list a tree.

The shared coefficients are fitted as in vLLM's `OnlineAcceptanceEstimator`: damped Newton steps on the graded nodes of
many steps. A node is graded where its parent was accepted and it had a row; which nodes had one depends on the estimate
alone, never on what the target says, so that the grades of a step are not a biased sample.

Plain torch, fixed shapes, no host synchronisation; every rank of a parallel target computes the same.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.drafting.buffers import BatchDrafts
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.ops.tree_verify import Walk

MAX_LOG_ODDS = 10.0  # of x; a drafter that is surer than this is not told from one that is this sure
REFIT_INTERVAL = 100  # steps
DAMPING = 50.0  # graded nodes; a fit to this many moves a coefficient by half of its Newton step
RIDGE = 1e-3
OFFSET_RATE = 0.2  # of a request's offset, by accepted node more than was expected
OFFSET_DECAY = 0.99  # of an offset, by round: what a request did long ago is forgotten


@dataclass(frozen=True)
class Coefficients:
    """Where an estimate starts: fitted when the drafter was trained, or the drafter's own probabilities."""

    slope: float = 1.0
    intercepts: tuple[float, ...] = ()  # by depth from 1 on; the last one also beyond, none is 0

    def __post_init__(self) -> None:
        if not 0 < self.slope < float("inf"):
            raise ValueError(f"the slope of a calibration must be above 0, not {self.slope}")

    def at_depths(self, length: int) -> list[float]:
        """The intercepts of depths 1 to `length`."""
        known = self.intercepts or (0.0,)
        return [known[min(depth, len(known) - 1)] for depth in range(length)]


class _Sums(NamedTuple):
    """Sums over graded nodes, by depth [T]: of the Hessian's entries, of the gradient's, and their number.

    The design row of a node is (x, 1 at its depth), so the Hessian is an arrowhead: one entry for the slope, one for
    each intercept, and one for each intercept with the slope.
    """

    slope_slope: Tensor
    slope_intercept: Tensor
    intercept_intercept: Tensor
    slope_gradient: Tensor
    intercept_gradient: Tensor
    graded: Tensor


class SurvivalEstimator:
    """Coefficients, the estimates of the trees that await verification, and the sums for the next fit.

    Rows are those of `DraftRows`: one for each request slot of the runner (P) and one for padding.
    """

    def __init__(
        self, max_num_reqs: int, max_nodes: int, length: int, device: torch.device, start: Coefficients | None = None
    ) -> None:
        start = start or Coefficients()
        self.slope = torch.full((1,), start.slope, dtype=torch.float32, device=device)
        self.intercepts = torch.tensor(start.at_depths(length), dtype=torch.float32, device=device)
        rows = max_num_reqs + 1
        self.offsets = torch.zeros(rows, dtype=torch.float32, device=device)
        self.log_odds = torch.zeros(rows, max_nodes, dtype=torch.float32, device=device)
        self.log_survival = torch.full((rows, max_nodes), -torch.inf, dtype=torch.float32, device=device)
        self._sums = torch.zeros(len(_Sums._fields), length, dtype=torch.float32, device=device)
        self._drawn = torch.zeros(0)  # log-odds [B, T, W] of the round that is being drawn
        self._ungraded = 0  # steps since the last fit
        self.num_fits = 0

    def open(self, row: int) -> None:
        """Forget the request that had this row."""
        self.offsets[row].zero_()

    def rank(self, beams: Beams, rows: Tensor) -> Tensor:
        """The log-survival of every beam, [B, T, W]; `rows` [B] are the requests'."""
        self._drawn = log_odds = log_odds_given_parent(beams)
        self.offsets[rows] *= OFFSET_DECAY
        bias_BT1 = (self.intercepts + self.offsets[rows, None])[..., None]
        own = logsigmoid(self.slope * log_odds + bias_BT1)
        survival = [own[:, 0]]
        for step in range(1, own.shape[1]):
            survival.append(own[:, step] + survival[-1].gather(1, beams.parents[:, step]))
        return torch.stack(survival, 1)

    def store(self, rows: Tensor, tree: DraftTree) -> None:
        """Keep what was estimated for the trees of the beams that `rank` has ranked last, until they are graded."""
        self.log_odds[rows] = self._drawn.flatten(1).gather(1, tree.beams)
        self.log_survival[rows] = tree.log_probs

    def grade(self, rows: Tensor, drafts: BatchDrafts, walk: Walk) -> None:
        """Learn from the accepted paths of one step's trees; `rows` [B] are the requests'."""
        is_accepted_B1N = _accepted(walk.path, drafts.tokens.shape[1])
        is_graded_BN = drafts.valid & is_accepted_B1N.gather(1, drafts.parents + 1)
        is_accepted_BN = is_accepted_B1N[:, 1:]
        probability_BN = self._given_parent(rows, drafts.parents).masked_fill(~is_graded_BN, 0)
        weight_BN = probability_BN * (1 - probability_BN)
        residual_BN = (is_accepted_BN & is_graded_BN).float() - probability_BN
        # The same rate however many nodes were graded: these are more after good news, which would then count less.
        self.offsets[rows] += OFFSET_RATE * residual_BN.sum(1)

        x_BN = self.log_odds[rows]
        terms = _Sums(
            slope_slope=weight_BN * x_BN * x_BN,
            slope_intercept=weight_BN * x_BN,
            intercept_intercept=weight_BN,
            slope_gradient=residual_BN * x_BN,
            intercept_gradient=residual_BN,
            graded=is_graded_BN.float(),
        )
        depth_M = (drafts.depths - 1).clamp(min=0).flatten()
        self._sums.index_add_(1, depth_M, torch.stack(terms).flatten(1))
        self._ungraded += 1
        if self._ungraded >= REFIT_INTERVAL:
            self._fit()

    def _given_parent(self, rows: Tensor, parents: Tensor) -> Tensor:
        """Probability of each stored node given its parent, as it was estimated when the tree was drawn. [B, N]"""
        log_survival = self.log_survival[rows]
        above = torch.cat([torch.zeros_like(log_survival[:, :1]), log_survival], 1).gather(1, parents + 1)
        return (log_survival - above).exp().nan_to_num(nan=0.0)

    def _fit(self) -> None:
        """One damped Newton step on the sums so far, which start anew."""
        sums = _Sums(*self._sums)
        diagonal = sums.intercept_intercept + RIDGE
        coupling = sums.slope_intercept / diagonal
        slope_step = (sums.slope_gradient - coupling * sums.intercept_gradient).sum() / (
            sums.slope_slope - coupling * sums.slope_intercept
        ).sum().add(RIDGE)
        total = sums.graded.sum()
        slope_step = slope_step * total / (total + DAMPING)
        # A slope below 0 would rank what the drafter thinks likely last.
        slope_step = torch.where(self.slope + slope_step > 0.01, slope_step, 0).nan_to_num()
        step = (sums.intercept_gradient - sums.slope_intercept * slope_step) / diagonal
        self.intercepts += (step * sums.graded / (sums.graded + DAMPING)).nan_to_num()
        self.slope += slope_step
        self._sums.zero_()
        self._ungraded = 0
        self.num_fits += 1


def log_odds_given_parent(beams: Beams) -> Tensor:
    """The drafter's log(p / (1 − p)) of every beam's last token given the beam that it continues. [B, T, W]"""
    above = torch.zeros_like(beams.log_probs)
    if beams.log_probs.shape[1] > 1:
        above[:, 1:] = beams.log_probs[:, :-1].gather(2, beams.parents[:, 1:])
    log_p = (beams.log_probs - above).clamp(max=0)
    return (log_p - torch.log(-torch.expm1(log_p))).nan_to_num(nan=-MAX_LOG_ODDS).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def _accepted(path: Tensor, num_nodes: int) -> Tensor:
    """Whether the root (column 0) and each node (column 1 + node) was accepted, [B, 1 + N]; `path` as in `Walk`."""
    # Entries of −1 mark the root, which always is.
    accepted = torch.zeros(path.shape[0], 1 + num_nodes, dtype=torch.bool, device=path.device)
    accepted[:, 0] = True
    return accepted.scatter_(1, path + 1, True)
