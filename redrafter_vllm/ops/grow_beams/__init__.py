# SPDX-License-Identifier: Apache-2.0
"""What becomes of the beams when a step has chosen their continuations."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.grow_beams import reference
from redrafter_vllm.ops.grow_beams.reference import BeamHistory

__all__ = ["BeamHistory", "grow_beams"]


def grow_beams(
    history: BeamHistory,
    parents: Tensor,  # [B, W]
    tokens: Tensor,  # [B, W]
    log_probs: Tensor,  # [B, W] fp32
) -> BeamHistory:
    """See `reference.grow_beams`; on CUDA devices by one launch."""
    if use_kernel(tokens):
        from redrafter_vllm.ops.grow_beams import kernel

        return kernel.grow_beams(history, parents, tokens, log_probs)
    return reference.grow_beams(history, parents, tokens, log_probs)
