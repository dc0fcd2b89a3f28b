# SPDX-License-Identifier: Apache-2.0
"""What becomes of the beams when a step has chosen their continuations."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.grow_beams import reference
from redrafter_vllm.ops.grow_beams.reference import BeamHistory

__all__ = ["BeamHistory", "grow_beams"]

grow_beams = dispatch(reference.grow_beams)
