# SPDX-License-Identifier: Apache-2.0
"""One layer's attention: trees by our kernels, the rest by vLLM's backend."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.v1.attention.backend import AttentionLayer, AttentionType

from redrafter_vllm.integration.attention.limits import check_layer
from redrafter_vllm.integration.attention.metadata import TreeAttentionMetadata


class TreeForward:
    """First base class, before an attention implementation of vLLM."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
        **extra: Any,
    ) -> None:
        check_layer(alibi_slopes, sliding_window, logits_soft_cap, attn_type, sinks, **extra)
        super().__init__(  # type: ignore[call-arg]
            num_heads,
            head_size,
            scale,
            num_kv_heads or num_heads,
            None,
            None,
            kv_cache_dtype,
            None,
            attn_type,
            kv_sharing_target_layer_name,
        )

    def entries(self, kv_cache: Tensor) -> Sequence[Tensor]:
        """What KV compaction moves: views of [blocks, kv heads, block size, any width]."""
        return [kv_cache]

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        return False

    def forward(
        self,
        layer: AttentionLayer,
        query: Tensor,  # [tokens, heads, head_size]
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,  # [blocks, kv heads, block size, 2 * head_size], any strides
        attn_metadata: TreeAttentionMetadata | None,
        output: Tensor,  # [tokens, heads, head_size]
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if attn_metadata is None:
            return output.fill_(0)
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("tree attention does not quantise its output")
        count, causal = attn_metadata.num_tree_tokens, attn_metadata.causal
        if causal is not None:
            rest = query, key, value, output
            if count > 0:  # views in each layer would take 1 % of a small target's step
                rest = query[count:], key[count:], value[count:], output[count:]
            super().forward(layer, *rest[:3], kv_cache, causal, rest[3])  # type: ignore[misc]
        if attn_metadata.trees is not None:
            self.attend_trees(layer, query[:count], kv_cache, attn_metadata, output[:count])
        return output

    def attend_trees(
        self, layer: AttentionLayer, query: Tensor, kv_cache: Tensor, metadata: TreeAttentionMetadata, output: Tensor
    ) -> None:
        """Write the attention of `metadata.trees` to `output`."""
        raise NotImplementedError
