# SPDX-License-Identifier: Apache-2.0
"""Adds to the beams of a round what followed the last time that the text's last tokens occurred."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.graft_copies import reference
from redrafter_vllm.ops.graft_copies.reference import Texts

__all__ = ["Texts", "graft_copies"]

graft_copies = dispatch(reference.graft_copies)
