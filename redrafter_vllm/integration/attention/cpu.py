# SPDX-License-Identifier: Apache-2.0
"""Tree attention in plain torch: the backend of machines without a GPU."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionLayer,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from redrafter_vllm.integration.attention.limits import check_layer
from redrafter_vllm.integration.attention.metadata import StepTrees
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import refuse_attention_layer
from redrafter_vllm.ops.tree_attention import grouped_mask, paged_attention, query_visibility


@dataclass
class RequestAttention:
    """One request's part of a step, for the attention of every layer."""

    rows: slice  # of the step's tokens
    block_ids: Tensor  # [blocks that hold the keys]
    num_keys: int
    visible: Tensor | None  # [rows, num_keys], None for a prompt from its first token on
    _masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def mask(self, group: int, dtype: torch.dtype) -> Tensor | None:
        """`grouped_mask` of what is visible; made once a step, as layers are alike."""
        if self.visible is None:
            return None
        if (group, dtype) not in self._masks:
            self._masks[group, dtype] = grouped_mask(self.visible, group, dtype)
        return self._masks[group, dtype]


@dataclass
class TreeAttentionMetadata(AttentionMetadata):
    """One step's attention, built once and shared by all layers."""

    requests: list[RequestAttention] = field(default_factory=list)


class TreeAttentionBackend(AttentionBackend):
    """Reads a cache of [blocks, kv heads, block size, key and value], in which KV compaction can move entries."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16, torch.float16]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["TreeAttentionImpl"]:
        return TreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type["TreeAttentionMetadataBuilder"]:
        return TreeAttentionMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)


class TreeAttentionMetadataBuilder(AttentionMetadataBuilder[TreeAttentionMetadata]):
    """Turns a step's layout and its trees into one visibility mask per request."""

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.block_size = kv_cache_spec.block_size

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        trees: StepTrees | None = None,
    ) -> TreeAttentionMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu.tolist()
        assert common.seq_lens_cpu_upper_bound is not None
        upper_bounds = common.seq_lens_cpu_upper_bound.tolist()
        no_drafts = torch.zeros(0, 0, dtype=torch.bool, device=common.seq_lens.device)
        num_drafts = [] if trees is None else trees.num_drafts_np.tolist()
        requests = []
        for index in range(common.num_reqs):
            rows = slice(starts[index], starts[index + 1])
            query_len, num_keys = rows.stop - rows.start, upper_bounds[index]
            if query_len == 0:
                continue
            drafts = no_drafts
            if trees is not None:
                drafts = trees.ancestors[index, : num_drafts[index], : num_drafts[index]]
            visible = None
            if query_len != num_keys or drafts.shape[0]:
                visible = query_visibility(query_len, num_keys, common.seq_lens[index], drafts)
            num_blocks = -(-num_keys // self.block_size)
            block_ids = common.block_table_tensor[index, :num_blocks].long()
            requests.append(RequestAttention(rows, block_ids, num_keys, visible))
        return TreeAttentionMetadata(requests)


class TreeAttentionImpl(AttentionImpl[TreeAttentionMetadata]):
    """One layer's attention."""

    @report_start_errors
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
    ) -> None:
        check_layer(alibi_slopes, sliding_window, logits_soft_cap, attn_type, sinks)
        if kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
            raise refuse_attention_layer(f"its cache is quantised (kv_cache_dtype={kv_cache_dtype})")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name

    def forward(
        self,
        layer: AttentionLayer,
        query: Tensor,  # [tokens, heads, head_size]
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,  # [blocks, kv heads, block size, 2 * head_size]
        attn_metadata: TreeAttentionMetadata | None,
        output: Tensor,  # [tokens, heads, head_size]
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if attn_metadata is None:  # vLLM's profiling run, which samples afterwards: the output must be finite
            return output.fill_(0)
        group = self.num_heads // self.num_kv_heads
        for request in attn_metadata.requests:
            mask = request.mask(group, query.dtype)
            output[request.rows] = paged_attention(
                query[request.rows], kv_cache, request.block_ids, request.num_keys, mask, self.scale
            )
        return output

    def do_kv_cache_update(
        self, layer: torch.nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        store(key, value, kv_cache, slot_mapping)


def store(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store the step's keys and values; padding (slot −1) goes to the null block, which is never read."""
    block_size = kv_cache.shape[2]
    slots = slot_mapping.clamp(min=0).long()
    num_tokens = slots.shape[0]
    entry = torch.cat((key[:num_tokens], value[:num_tokens]), dim=-1).to(kv_cache.dtype)
    kv_cache[slots // block_size, :, slots % block_size] = entry
