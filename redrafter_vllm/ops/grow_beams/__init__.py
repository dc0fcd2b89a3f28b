# SPDX-License-Identifier: Apache-2.0
"""Keeps the beams that a step has chosen, and finds their parents' states."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.grow_beams import reference
from redrafter_vllm.ops.grow_beams.reference import BeamHistory

__all__ = ["BeamHistory", "grow_beams"]

grow_beams = dispatch(reference.grow_beams)
