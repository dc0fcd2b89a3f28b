# SPDX-License-Identifier: Apache-2.0
"""Estimates of which nodes will be accepted: made when a tree is drawn, graded when it has been verified."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.survival import reference
from redrafter_vllm.ops.survival.reference import MOST_SAVED, NUM_SUMS, Estimates, Sums, log_odds_given_parent

__all__ = [
    "MOST_SAVED",
    "NUM_SUMS",
    "Estimates",
    "Sums",
    "grade_nodes",
    "keep_tree",
    "log_odds_given_parent",
    "rank_beams",
]

rank_beams = dispatch(reference.rank_beams)
keep_tree = dispatch(reference.keep_tree)
grade_nodes = dispatch(reference.grade_nodes)
