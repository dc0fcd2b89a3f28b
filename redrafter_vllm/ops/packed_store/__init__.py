# SPDX-License-Identifier: Apache-2.0
"""Stores a step's keys and values in the cache of vLLM's CPU attention, in which keys lie by dimension.

Siblings of a tree have slots next to each other, so that a dimension of theirs shares a cache line. vLLM's kernel gives
each token to a thread, and the threads take such lines from each other: six tokens take it six times as long as one.
"""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.packed_store import reference

__all__ = ["packed_store"]

packed_store = dispatch(reference.packed_store)
