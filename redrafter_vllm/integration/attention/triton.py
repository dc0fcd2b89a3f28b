# SPDX-License-Identifier: Apache-2.0
"""Tree attention in Triton alone, with the classes and the cache of vLLM's TRITON_ATTN backend.

For what FlashAttention does not support: fp32, other devices. Interpreted, it also runs without a GPU, for debugging.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionLayer
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from redrafter_vllm.integration.attention.impl import TreeForward
from redrafter_vllm.integration.attention.limits import TreeLimits
from redrafter_vllm.integration.attention.metadata import TreeAttentionMetadata, TreeMetadataBuilder
from redrafter_vllm.ops.tree_attention import kernel


class TritonTreeBackend(TreeLimits, TritonAttentionBackend):
    """Context and nodes by `ops.tree_attention`, prompts by vLLM's unified attention."""

    @staticmethod
    def get_impl_cls() -> type["TritonTreeImpl"]:
        return TritonTreeImpl

    @staticmethod
    def get_builder_cls() -> type["TritonTreeMetadataBuilder"]:
        return TritonTreeMetadataBuilder


class TritonTreeMetadataBuilder(TreeMetadataBuilder):
    causal_builder = TritonAttentionMetadataBuilder


class TritonTreeImpl(TreeForward, TritonAttentionImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Both kernels decode an FP8 cache as they read it, so the query keeps its precision.
        self.supports_quant_query_input = False

    def do_kv_cache_update(
        self, layer: AttentionLayer, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        if key.is_cuda:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        else:  # vLLM's launcher queries CUDA for its tile size
            _store(key, value, kv_cache, slot_mapping)

    def attend_trees(
        self, layer: AttentionLayer, query: Tensor, kv_cache: Tensor, metadata: TreeAttentionMetadata, output: Tensor
    ) -> None:
        assert metadata.trees is not None
        k_scale, v_scale = layer._k_scale, layer._v_scale
        if not is_quantized_kv_cache(self.kv_cache_dtype):
            k_scale = v_scale = None
        kernel.tree_attention(query, kv_cache, metadata.trees, self.scale, k_scale, v_scale, output)


def _store(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store the step's keys and values; padding (slot −1) goes to the null block, which is never read."""
    block_size = kv_cache.shape[2]
    slots = slot_mapping.clamp(min=0).long()
    num_tokens = slots.shape[0]
    entry = torch.cat((key[:num_tokens], value[:num_tokens]), dim=-1).to(kv_cache.dtype)
    kv_cache[slots // block_size, :, slots % block_size] = entry
