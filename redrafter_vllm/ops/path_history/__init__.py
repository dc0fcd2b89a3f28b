# SPDX-License-Identifier: Apache-2.0
"""Logits processing that depends on the tokens before a row, along the row's own path through the draft tree."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.path_history import reference
from redrafter_vllm.ops.path_history.reference import BadWords, Paths, Penalties

__all__ = ["BadWords", "Paths", "Penalties", "forbid_bad_words", "penalise"]


def penalise(logits: Tensor, paths: Paths, slot_of_row: Tensor, penalties: Penalties) -> None:
    """See `reference.penalise`; on CUDA devices by a kernel."""
    if use_kernel(logits):
        from redrafter_vllm.ops.path_history import kernel

        kernel.penalise(logits, paths, slot_of_row, penalties)
    else:
        reference.penalise(logits, paths, slot_of_row, penalties)


def forbid_bad_words(
    logits: Tensor, paths: Paths, slot_of_row: Tensor, words: BadWords, max_words: int, max_length: int
) -> None:
    """See `reference.forbid_bad_words`; on CUDA devices by a kernel."""
    if use_kernel(logits):
        from redrafter_vllm.ops.path_history import kernel

        kernel.forbid_bad_words(logits, paths, slot_of_row, words, max_words, max_length)
    else:
        reference.forbid_bad_words(logits, paths, slot_of_row, words, max_words, max_length)
