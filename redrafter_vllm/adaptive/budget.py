# SPDX-License-Identifier: Apache-2.0
"""The node budget of a step: the nodes of the whole batch that bring the most tokens per unit of time."""

from typing import NamedTuple

import numpy as np


class Budget(NamedTuple):
    """How many nodes of each request a step verifies, and what is expected of it."""

    num_nodes: np.ndarray  # [B] int64
    tokens: float  # expected, over all requests
    seconds: float


def choose_budget(survival: np.ndarray, num_emitting: int, seconds: np.ndarray) -> Budget:
    """The budget with the most expected tokens per second; of equal ones the smallest.

    Args:
        survival: [B, N] probability that each node is accepted, falling along each row; 0 where there is no node.
        num_emitting: Requests that emit one token in this step without any draft.
        seconds: [1 + M] duration of the step with 0 to M nodes, of which there are at most M in the batch.

    As survival falls along a row, the best nodes of the batch are the first ones of each request.
    """
    order, tokens = _ranked(survival, num_emitting, len(seconds) - 1)
    best = int(np.argmax(tokens / seconds[: len(tokens)]))
    return _budget_of(survival, order, tokens, seconds, best)


def given_budget(survival: np.ndarray, num_emitting: int, seconds: np.ndarray, total: int) -> Budget:
    """The best `total` nodes, or all if there are fewer; arguments as in `choose_budget`."""
    order, tokens = _ranked(survival, num_emitting, len(seconds) - 1)
    return _budget_of(survival, order, tokens, seconds, min(total, len(order)))


def _ranked(survival: np.ndarray, num_emitting: int, max_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of the batch, best first [M], and the tokens expected of the first 0 to M of them [1 + M]."""
    order = np.argsort(-survival, axis=None, kind="stable")[:max_nodes]
    ranked = survival.ravel()[order]
    order, ranked = order[ranked > 0], ranked[ranked > 0]
    return order, num_emitting + np.concatenate(([0.0], np.cumsum(ranked)))


def _budget_of(survival: np.ndarray, order: np.ndarray, tokens: np.ndarray, seconds: np.ndarray, total: int) -> Budget:
    num_nodes = np.bincount(order[:total] // survival.shape[1], minlength=survival.shape[0])
    return Budget(num_nodes, float(tokens[total]), float(seconds[total]))
