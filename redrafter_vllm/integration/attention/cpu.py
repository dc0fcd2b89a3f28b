# SPDX-License-Identifier: Apache-2.0
"""Tree attention on a CPU, with the classes and the cache of vLLM's CPU_ATTN backend."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.attention.backend import AttentionLayer, MultipleOf
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from redrafter_vllm.integration.attention.impl import TreeForward
from redrafter_vllm.integration.attention.limits import TreeLimits
from redrafter_vllm.integration.attention.metadata import TreeAttentionMetadata, TreeMetadataBuilder
from redrafter_vllm.ops.packed_attention import packed_attention, packed_entries
from redrafter_vllm.ops.packed_store import packed_store


class CpuTreeBackend(TreeLimits, CPUAttentionBackend):
    """Requests with drafts by `ops.packed_attention`, the others and prompts by vLLM's kernel."""

    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto"]  # vLLM's kernel reads the cache as the query's type

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @staticmethod
    def get_impl_cls() -> type["CpuTreeImpl"]:
        return CpuTreeImpl

    @staticmethod
    def get_builder_cls() -> type["CpuTreeMetadataBuilder"]:
        return CpuTreeMetadataBuilder


class _PackedMetadataBuilder(CPUAttentionMetadataBuilder):
    """vLLM's, for the one cache layout that `ops.packed_attention` reads, whatever the processor could do besides."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.isa = "vec" if self.block_size % 32 == 0 and self.head_dim % 32 == 0 else "vec16"
        self._set_isa_to_layers(self.layer_names)


class CpuTreeMetadataBuilder(TreeMetadataBuilder):
    causal_builder = _PackedMetadataBuilder


class CpuTreeImpl(TreeForward, CPUAttentionBackendImpl):
    _kv_cache: Tensor | None = None  # whose entries are
    _entries: Sequence[Tensor] = ()

    def entries(self, kv_cache: Tensor) -> Sequence[Tensor]:
        if self._kv_cache is not kv_cache:  # views of each layer in each step would take 1 % of it
            self._kv_cache, self._entries = kv_cache, packed_entries(kv_cache)
        return self._entries

    def do_kv_cache_update(
        self, layer: AttentionLayer, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        packed_store(key, value, kv_cache, slot_mapping)

    def attend_trees(
        self, layer: AttentionLayer, query: Tensor, kv_cache: Tensor, metadata: TreeAttentionMetadata, output: Tensor
    ) -> None:
        assert metadata.trees is not None
        packed_attention(query, kv_cache, metadata.trees, self.scale, output)
