# SPDX-License-Identifier: Apache-2.0
"""Beam search over the drafter: the candidates of one drafting round."""

from collections.abc import Callable

from torch import Tensor

from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.beam_search import reference
from redrafter_vllm.ops.beam_search.reference import Beams, BeamStep, RankStep
from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.grow_beams import grow_beams

__all__ = ["BeamStep", "Beams", "beam_search", "beam_step"]


def beam_step(
    logits: Tensor,  # [B, W, V]
    scores: Tensor | None,  # [B, W] fp32
    logits_top_k: int | None = None,
    id_offsets: Tensor | None = None,  # [V]
) -> BeamStep:
    """See `reference.beam_step`; on CUDA devices by kernels, for the sizes that they take."""
    if use_kernel(logits):
        from redrafter_vllm.ops.beam_search import kernel

        if kernel.supports(logits, logits_top_k):
            return kernel.beam_step(logits, scores, logits_top_k, id_offsets)
    return reference.beam_step(logits, scores, logits_top_k, id_offsets)


def beam_search(
    drafter: Drafter,
    embedding: Tensor | Callable[[Tensor], Tensor],
    context: Tensor,
    root_tokens: Tensor,
    *,
    beam_width: int,
    beam_length: int,
    logits_top_k: int | None = None,
    step: RankStep = beam_step,
) -> Beams:
    """See `reference.beam_search`; beams are ranked and grown by kernels where there are any for the device."""
    return reference.beam_search(
        drafter,
        embedding,
        context,
        root_tokens,
        beam_width=beam_width,
        beam_length=beam_length,
        logits_top_k=logits_top_k,
        step=step,
        grow=grow_beams,
    )
