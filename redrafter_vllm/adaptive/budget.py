# SPDX-License-Identifier: Apache-2.0
"""The node budget of a step: the nodes of the whole batch that make a token of its requests take the least time.

What is minimised is the mean of the requests' times per token. The batch's tokens per second would be a worse aim:
nodes would go where most of them are accepted, to a few requests that repeat themselves, and all others would wait for
the longer steps. Those few then leave early, and the batch as a whole ends later than without any draft.
"""

from typing import NamedTuple

import numpy as np


class Budget(NamedTuple):
    """How many nodes of each request a step verifies, and what is expected of it."""

    num_nodes: np.ndarray  # [B] int64
    tokens: float  # expected, over all requests
    seconds: float


def choose_budget(survival: np.ndarray, num_emitting: int, seconds: np.ndarray) -> Budget:
    """The budget with the least expected time per token, as the mean over requests; of equal ones the smallest.

    Args:
        survival: [B, N] probability that each node is accepted, falling along each row; 0 where there is no node.
        num_emitting: Requests that emit one token in this step without any draft.
        seconds: [1 + M] duration of the step with 0 to M nodes, of which there are at most M in the batch.

    As survival falls along a row, the best nodes of the batch are the first ones of each request.
    """
    order, saved = _ranked(survival, len(seconds) - 1)
    steps_per_token = max(num_emitting, 1) - np.concatenate(([0.0], np.cumsum(saved)))  # summed over requests
    best = int(np.argmin(steps_per_token * seconds[: len(steps_per_token)]))
    return _budget_of(survival, order[:best], num_emitting, seconds)


def given_budget(survival: np.ndarray, num_emitting: int, seconds: np.ndarray, total: int) -> Budget:
    """The best `total` nodes, or all if there are fewer; arguments as in `choose_budget`."""
    order, _ = _ranked(survival, len(seconds) - 1)
    return _budget_of(survival, order[:total], num_emitting, seconds)


def saved_steps(survival: np.ndarray) -> np.ndarray:
    """By how much each node lowers its request's steps per token, 1 without nodes; falling along each row. [B, N]

    Args:
        survival: [B, N] probability that each node is accepted.
    """
    tokens = 1 + survival.cumsum(1)
    saved: np.ndarray = survival / (tokens * (tokens - survival))
    return saved


def survival_of(saved: np.ndarray) -> np.ndarray:
    """The survival of nodes that save so many steps per token: the inverse of `saved_steps`. [B, N]

    Means of several trees may save more than any tree does; then the nodes are certain.
    """
    most = 1 - 1 / np.arange(2, 2 + saved.shape[1])
    tokens = np.pad(1 / (1 - np.minimum(saved.cumsum(1), most)), ((0, 0), (1, 0)), constant_values=1.0)
    survival: np.ndarray = np.diff(tokens)
    return survival


def _ranked(survival: np.ndarray, max_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of the batch that save something, best first [M], and what they save [M]."""
    saved = saved_steps(survival).ravel()
    order = np.argsort(-saved, kind="stable")[:max_nodes]
    order = order[saved[order] > 0]
    return order, saved[order]


def _budget_of(survival: np.ndarray, chosen: np.ndarray, num_emitting: int, seconds: np.ndarray) -> Budget:
    num_nodes = np.bincount(chosen // survival.shape[1], minlength=survival.shape[0])
    return Budget(num_nodes, num_emitting + float(survival.ravel()[chosen].sum()), float(seconds[len(chosen)]))
