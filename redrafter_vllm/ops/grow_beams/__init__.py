# SPDX-License-Identifier: Apache-2.0
"""Extends beams by the continuations that a step has chosen."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.grow_beams import reference
from redrafter_vllm.ops.grow_beams.reference import BeamHistory

__all__ = ["BeamHistory", "grow_beams"]

grow_beams = dispatch(reference.grow_beams)
