# SPDX-License-Identifier: Apache-2.0
"""Tree attention over the cache of vLLM's CPU attention, in which keys lie by dimension and values by slot."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.packed_attention import reference
from redrafter_vllm.ops.packed_attention.reference import packed_entries

__all__ = ["packed_attention", "packed_entries"]

packed_attention = dispatch(reference.packed_attention)
