# SPDX-License-Identifier: Apache-2.0
"""The probability that the walk reaches a node of a draft tree, estimated from the drafter's own and corrected online.

A node is accepted, given that its parent is, with probability σ(slope · x + intercept of its depth + offset of its
request), where x is the log-odds log(p / (1 − p)) of the drafter's probability p. Slope 1 and intercepts 0 take the
drafter at its word. A copy of the text has another origin: its odds are those that the rule of `ops.graft_copies` gives
it, with an intercept of their own, the same at all depths. A node survives if it and all nodes above it are accepted,
so it never survives its parent, and ranking nodes by survival keeps every prefix of the list a tree.

The shared coefficients are fitted as in vLLM's `OnlineAcceptanceEstimator`: damped Newton steps on the graded nodes of
many steps. A node is graded where its parent was accepted and it had a row; which nodes had one follows from estimates,
costs and earlier steps, never from what the target says in this one, so that its grades are not a biased sample.

Plain torch, fixed shapes, no host synchronisation; every rank of a parallel target computes the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.drafting.buffers import BatchDrafts
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.ops.survival import NUM_SUMS, Estimates, Sums, grade_nodes, keep_tree, rank_beams
from redrafter_vllm.ops.tree_verify import Walk

REFIT_INTERVAL = 100  # steps
DAMPING = 50.0  # graded nodes; a fit to this many moves a coefficient by half of its Newton step
RIDGE = 1e-3


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


class SurvivalEstimator:
    """Coefficients, the estimates of the trees that await verification, and the sums for the next fit.

    Rows are those of `DraftRows`: one for each request slot of the runner (P) and one for padding.
    """

    def __init__(
        self,
        max_num_reqs: int,
        max_nodes: int,
        length: int,
        device: torch.device,
        start: Coefficients | None = None,
        *,
        copies: bool = False,
    ) -> None:
        start = start or Coefficients()
        intercepts = start.at_depths(length) + [0.0] * copies
        self.slope = torch.full((1,), start.slope, dtype=torch.float32, device=device)
        self.intercepts = torch.tensor(intercepts, dtype=torch.float32, device=device)
        self.offsets = torch.zeros(max_num_reqs + 1, dtype=torch.float32, device=device)
        nodes = (max_num_reqs + 1, max_nodes)
        self.log_survival = torch.full(nodes, -torch.inf, dtype=torch.float32, device=device)
        self.estimates = Estimates(
            self.slope,
            self.intercepts,
            self.offsets,
            kinds=torch.zeros(nodes, dtype=torch.int64, device=device),
            log_odds=torch.zeros(nodes, dtype=torch.float32, device=device),
            log_survival=self.log_survival,
            sums=torch.zeros(max_num_reqs + 1, NUM_SUMS, len(intercepts), dtype=torch.float32, device=device),
            copies=copies,
        )
        self._drawn = torch.zeros(0)  # log-odds [B, T, W] of the round that is being drawn
        self._ungraded = 0  # steps since the last fit
        self.num_fits = 0

    def open(self, row: int) -> None:
        """Forget the request that had this row."""
        self.offsets[row].zero_()

    def rank(self, beams: Beams, rows: Tensor) -> Tensor:
        """The log-survival of every beam, [B, T, W]; `rows` [B] are the requests'."""
        self._drawn, log_survival = rank_beams(self.estimates, beams.log_probs, beams.parents, rows)
        return log_survival

    def store(self, rows: Tensor, tree: DraftTree, node_budget: Tensor, confidences: Tensor) -> None:
        """Keep what was estimated for the trees of the beams that `rank` has ranked last, until they are graded.

        `node_budget` [B] limits the nodes; `confidences` [B, N] gets what vLLM's manager admits nodes by: see
        `ops.survival.keep_tree`.
        """
        own = tree.beams, tree.log_probs, tree.num_nodes
        keep_tree(self.estimates, self._drawn, *own, node_budget, rows, confidences)

    def grade(self, rows: Tensor, drafts: BatchDrafts, walk: Walk) -> None:
        """Learn from the accepted paths of one step's trees; `rows` [B] are the requests'."""
        grade_nodes(self.estimates, rows, drafts.parents, drafts.valid, walk.path)
        self._ungraded += 1
        if self._ungraded >= REFIT_INTERVAL:
            self._fit()

    def beam_steps(self, rows: Tensor) -> Tensor:
        """The beam steps that each node of the stored trees took, 0 for a copy of the text. [B, N]"""
        return self.beam_steps_of(self.estimates.kinds[rows])

    def beam_steps_of(self, kinds: Tensor) -> Tensor:
        """The beam steps that nodes of these kinds took."""
        return torch.where(kinds == self.estimates.copy_kind, 0, kinds + 1)

    def _fit(self) -> None:
        """One damped Newton step on the sums so far, which start anew."""
        sums = Sums(*self.estimates.sums.sum(0))
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
        self.estimates.sums.zero_()
        self._ungraded = 0
        self.num_fits += 1
