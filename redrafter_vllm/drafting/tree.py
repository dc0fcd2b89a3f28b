# SPDX-License-Identifier: Apache-2.0
"""The draft tree, which one step of the target verifies."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.ops.prefix_tree import ancestor_mask, prefix_tree


@dataclass(frozen=True)
class DraftTree:
    """The beams of all steps of a round, each a node, at most N a request; the root token is not a node.

    arXiv 2403.09919, section 3.3, takes the last step's beams and their prefixes alone. But these share most of their
    first tokens, and the beams that were dropped on the way, which the search has paid for as well, are often what the
    target says next (docs/dev/log.md).

    Nodes are in order of descending probability, equal ones by depth. So a parent precedes its children, a node's index
    is at least its depth − 1, and the first n nodes are a valid tree for every n: the most probable n prefixes. Slots
    from `num_nodes` on are padding: token 0, parent −1, depth 0, log-probability −inf, beam 0.
    """

    tokens: Tensor  # [B, N] int64
    parents: Tensor  # [B, N] int64, a node index, −1 under the root
    depths: Tensor  # [B, N] int64, 1 under the root
    log_probs: Tensor  # [B, N] fp32, cumulative from the root: the drafter's, or an estimate of what will be accepted
    beams: Tensor  # [B, N] int64, step · W + the beam of that step
    num_nodes: Tensor  # [B] int64

    @classmethod
    def from_beams(
        cls, beams: Beams, max_nodes: int, beam_limit: Tensor | None = None, log_probs: Tensor | None = None
    ) -> Self:
        """Packs `beams` into trees of N = `max_nodes` slots, keeping the most probable ones.

        `log_probs` [B, T, W] fp32 rank the beams instead of their own: those of `adaptive.survival`.

        `beam_limit` [B] (int64, at least 1): below W, only the best beams of the last step, this many, and their
        prefixes are used; a limit of 1 gives a chain.
        Runs on the beams' device without host synchronisation. Raises ValueError when `max_nodes` is below 1.
        """
        if max_nodes < 1:
            raise ValueError(f"max_nodes must be at least 1, not {max_nodes}")
        scores = beams.log_probs if log_probs is None else log_probs
        return cls(*prefix_tree(beams.tokens, beams.parents, scores, max_nodes, beam_limit))

    def ancestor_mask(self) -> Tensor:
        """[B, N, N] bool: entry [b, i, j] says that j is i or an ancestor of i; padding rows and columns are False."""
        return ancestor_mask(self.parents, self.num_nodes)
