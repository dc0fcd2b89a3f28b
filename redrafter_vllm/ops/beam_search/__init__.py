# SPDX-License-Identifier: Apache-2.0
"""Beam search over the drafter: the candidates of one drafting round."""

from torch import Tensor

from redrafter_vllm.ops.beam_search import reference
from redrafter_vllm.ops.beam_search.reference import Beams, BeamStep, beam_search
from redrafter_vllm.ops.dispatch import use_kernel

__all__ = ["BeamStep", "Beams", "beam_search", "beam_step"]


def beam_step(
    logits: Tensor,  # [B, W, V]
    scores: Tensor,  # [B, W] fp32
    logits_top_k: int | None = None,
) -> BeamStep:
    """One step of the beam search: the kernel on a GPU, for sizes that it takes, and the reference elsewhere."""
    if use_kernel(logits):
        from redrafter_vllm.ops.beam_search import kernel

        if kernel.supports(logits, logits_top_k):
            return kernel.beam_step(logits, scores, logits_top_k)
    return reference.beam_step(logits, scores, logits_top_k)
