# SPDX-License-Identifier: Apache-2.0
"""Logits processing that depends on the tokens before a row, along the row's path through the draft tree."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.path_history import reference
from redrafter_vllm.ops.path_history.reference import BadWords, Paths, Penalties

__all__ = ["BadWords", "Paths", "Penalties", "forbid_bad_words", "penalise"]

forbid_bad_words = dispatch(reference.forbid_bad_words)
penalise = dispatch(reference.penalise)
