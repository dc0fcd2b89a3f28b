# SPDX-License-Identifier: Apache-2.0
"""Tree attention with vLLM's FlashAttention for the context, and our kernel for the nodes and for merging both."""

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import AttentionLayer, CommonAttentionMetadata
from vllm.v1.attention.backends import flash_attn
from vllm.v1.kv_cache_interface import AttentionSpec, is_quantized_kv_cache

from redrafter_vllm.integration.attention.impl import TreeForward
from redrafter_vllm.integration.attention.limits import TreeLimits
from redrafter_vllm.integration.attention.metadata import TreeAttentionMetadata, TreeMetadataBuilder
from redrafter_vllm.integration.attention.require import require_fields, require_parameters
from redrafter_vllm.ops.tree_attention import kernel

require_fields(flash_attn.FlashAttentionMetadata, "seq_lens max_seq_len scheduler_metadata max_num_splits")
require_parameters(flash_attn.get_flash_attn_version, "head_size")
if flash_attn.is_flash_attn_varlen_func_available():
    require_parameters(
        flash_attn.flash_attn_varlen_func,
        "q k v max_seqlen_q cu_seqlens_q max_seqlen_k seqused_k softmax_scale causal block_table return_softmax_lse "
        "scheduler_metadata q_descale k_descale v_descale num_splits fa_version",
    )


class FlashTreeBackend(TreeLimits, flash_attn.FlashAttentionBackend):
    """Context by FlashAttention, nodes by `ops.tree_attention`, prompts by FlashAttention as in vLLM."""

    @staticmethod
    def get_impl_cls() -> type["FlashTreeImpl"]:
        return FlashTreeImpl

    @staticmethod
    def get_builder_cls() -> type["FlashTreeMetadataBuilder"]:
        return FlashTreeMetadataBuilder

    @classmethod
    def supports_combination(cls, head_size: int, *args: Any, **kwargs: Any) -> str | None:
        if _context_version(head_size) is None:
            return "vLLM has no FlashAttention for this device"
        return super().supports_combination(head_size, *args, **kwargs)


class FlashTreeMetadataBuilder(TreeMetadataBuilder):
    """Has two of vLLM's builders, as each keeps the schedule of one attention in its buffer."""

    causal_builder = flash_attn.FlashAttentionMetadataBuilder

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.context = flash_attn.FlashAttentionMetadataBuilder(kv_cache_spec, layer_names, vllm_config, device)

    def _tree_metadata(self, common: CommonAttentionMetadata) -> TreeAttentionMetadata:
        metadata = super()._tree_metadata(common)
        context_lens = self.buffers.context_lens[: common.num_reqs]
        metadata.context = self.context.build(0, common.replace(seq_lens=context_lens, causal=False))
        return metadata


class FlashTreeImpl(TreeForward, flash_attn.FlashAttentionImpl):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_version = _context_version(self.head_size)

    def attend_trees(
        self, layer: AttentionLayer, query: Tensor, kv_cache: Tensor, metadata: TreeAttentionMetadata, output: Tensor
    ) -> None:
        trees, context = metadata.trees, metadata.context
        assert trees is not None
        is_quantised = is_quantized_kv_cache(self.kv_cache_dtype)
        # [blocks, block size, kv heads, head_size] each; FlashAttention 3 and 4 want regular strides.
        caches = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        key_cache, value_cache = (canonicalize_singleton_dim_strides(cache) for cache in caches)
        q_scale = k_scale = v_scale = None
        if is_quantised:
            fp8 = current_platform.fp8_dtype()
            key_cache, value_cache = key_cache.view(fp8), value_cache.view(fp8)
            k_scale, v_scale = layer._k_scale, layer._v_scale
            q_scale = layer._q_scale if self.supports_quant_query_input else None
        per_head = (trees.seq_lens.shape[0], self.num_kv_heads)
        context_out, log_sum = flash_attn.flash_attn_varlen_func(
            q=query,
            k=key_cache,
            v=value_cache,
            cu_seqlens_q=trees.query_start_loc,
            max_seqlen_q=trees.max_query_len,
            seqused_k=context.seq_lens,
            max_seqlen_k=context.max_seq_len,
            softmax_scale=self.scale,
            causal=False,
            block_table=trees.block_table,
            return_softmax_lse=True,
            scheduler_metadata=context.scheduler_metadata,
            fa_version=self.context_version,
            q_descale=None if q_scale is None else q_scale.expand(per_head),
            k_descale=None if k_scale is None else k_scale.expand(per_head),
            v_descale=None if v_scale is None else v_scale.expand(per_head),
            num_splits=context.max_num_splits,
        )
        kernel.attend_nodes(
            query, kv_cache, trees, context_out[None], log_sum[None], self.scale, k_scale, v_scale, output, q_scale
        )


def _context_version(head_size: int) -> int | None:
    """FlashAttention's version for the context; never Blackwell's own for heads of 256, which needs whole pages."""
    version: int | None = flash_attn.get_flash_attn_version(head_size=head_size)
    return version
