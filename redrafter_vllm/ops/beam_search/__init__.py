# SPDX-License-Identifier: Apache-2.0
"""Beam search over the drafter: the candidates of one drafting round."""

from redrafter_vllm.ops.beam_search.reference import Beams, beam_search

__all__ = ["Beams", "beam_search"]
