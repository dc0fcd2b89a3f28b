# SPDX-License-Identifier: Apache-2.0
"""One step of beam search: the best W continuations of W beams."""

from redrafter_vllm.ops.beam_step import reference
from redrafter_vllm.ops.beam_step.reference import BeamStep
from redrafter_vllm.ops.dispatch import dispatch

__all__ = ["BeamStep", "beam_step"]

beam_step = dispatch(reference.beam_step)
