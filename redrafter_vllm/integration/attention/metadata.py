# SPDX-License-Identifier: Apache-2.0
"""Metadata of a step's attention, in tensors of fixed address, which CUDA graphs read.

The leading requests of a batch, those with drafts, get tree attention; the requests behind them are causal and go
through vLLM's own backend. The host knows where the second part begins.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from redrafter_vllm.integration.attention.require import require_fields
from redrafter_vllm.ops.tree_attention import TreeBatch

require_fields(
    CommonAttentionMetadata,
    "query_start_loc query_start_loc_cpu seq_lens num_reqs num_actual_tokens max_query_len max_seq_len "
    "block_table_tensor slot_mapping causal positions is_prefilling seq_lens_cpu_upper_bound req_idx "
    "_num_computed_tokens_cache _token_to_req_indices_cache",
)


@dataclass(frozen=True)
class StepTrees:
    """The trees of a step, in batch order, as the model state passes them to the builders.

    A scheduled draft token without a node is not masked, as its output is not used: it is no node's ancestor, and it
    always sees its root.
    """

    ancestors: Tensor  # [B, N, N] bool, a node's path, itself included
    num_drafts: Tensor  # [B]
    num_drafts_np: np.ndarray  # [B], the same on the host, or an upper bound where trees are trimmed on the device
    query_lens_np: np.ndarray  # [B] tokens of each request in the step, likewise


@dataclass
class TreeAttentionMetadata(AttentionMetadata):
    """One step's attention, built once and shared by all layers."""

    num_tree_tokens: int = 0  # the first ones of the step
    trees: TreeBatch | None = None
    context: Any = None  # vLLM's metadata of attention to the trees' context, where its kernel computes that
    causal: Any = None  # vLLM's metadata of the other tokens


class TreeBuffers:
    """Buffers that change from step to step: written before the forward pass, read by kernels and by their graphs."""

    def __init__(self, max_num_reqs: int, max_nodes: int, device: torch.device) -> None:
        self.ancestors = torch.zeros(max_num_reqs, max_nodes, max_nodes, dtype=torch.bool, device=device)
        self.num_drafts = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)
        self.context_lens = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)
        self.causal_start_loc = torch.zeros(max_num_reqs + 1, dtype=torch.int32, device=device)

    def refresh(self, common: CommonAttentionMetadata, trees: StepTrees | None) -> None:
        """Write this step's values for every request, padding included; without `trees` no request has drafts."""
        num_reqs, starts = common.num_reqs, common.query_start_loc
        context_lens = self.context_lens[:num_reqs]
        torch.sub(common.seq_lens[:num_reqs], starts[1 : num_reqs + 1], out=context_lens)
        context_lens += starts[:num_reqs]
        num_trees = 0
        if trees is not None:
            num_trees = trees.num_drafts.shape[0]
            self.num_drafts[:num_trees] = trees.num_drafts
            self.ancestors[:num_trees] = trees.ancestors
        self.num_drafts[num_trees:num_reqs] = 0

    def batch(self, common: CommonAttentionMetadata) -> TreeBatch:
        """The layout of these requests for our kernels; its tensors are views of the buffers."""
        num_reqs = common.num_reqs
        return TreeBatch(
            block_table=common.block_table_tensor[:num_reqs],
            query_start_loc=common.query_start_loc[: num_reqs + 1],
            seq_lens=common.seq_lens[:num_reqs],
            ancestors=self.ancestors[:num_reqs],
            num_drafts=self.num_drafts[:num_reqs],
            max_query_len=common.max_query_len,
        )


class TreeMetadataBuilder(AttentionMetadataBuilder[TreeAttentionMetadata]):
    """Splits a step into trees and causal requests.

    A full CUDA graph beyond one token a request holds tree attention for every request of its batch. It is right for
    any drafts, since it reads their number, their ancestors and each query's length from buffers; requests that pad the
    batch have no query. vLLM captures it for one query length, or where trees adapt for all up to 1 + N.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    # Whether every graph holds tree attention, whatever the lengths of the queries; set where trees adapt.
    has_graphs_of_any_length: bool = False
    causal_builder: ClassVar[type[AttentionMetadataBuilder]]

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.causal = self.causal_builder(kv_cache_spec, layer_names, vllm_config, device)
        self.decode_query_len = 1 + vllm_config.num_speculative_tokens
        self.buffers = TreeBuffers(
            vllm_config.scheduler_config.max_num_seqs, vllm_config.num_speculative_tokens, device
        )

    @classmethod
    def get_varlen_cudagraph_max_query_len(cls, vllm_config: VllmConfig, kv_cache_spec: AttentionSpec) -> int:
        """The longest query of a batch of mixed lengths that a full graph may hold: a root and N nodes."""
        return 1 + int(vllm_config.num_speculative_tokens)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        trees: StepTrees | None = None,
    ) -> TreeAttentionMetadata:
        common = common_attn_metadata
        if self.has_graphs_of_any_length and common.max_query_len <= self.decode_query_len:
            # A graph may be replayed even where no request has drafts. It was captured for the longest query, and
            # FlashAttention's schedule must be made for the same one.
            self.buffers.refresh(common, trees)
            return self._tree_metadata(common.replace(max_query_len=self.decode_query_len))
        num_trees = self._num_tree_requests(common, trees)
        if num_trees == 0:
            return TreeAttentionMetadata(causal=self.causal.build(0, common))
        self.buffers.refresh(common, trees)
        if num_trees == common.num_reqs:
            return self._tree_metadata(common)
        assert trees is not None
        longest = int(trees.query_lens_np[:num_trees].max())
        metadata = self._tree_metadata(leading_requests(common, num_trees, longest))
        rest = trailing_requests(common, num_trees, self.buffers.causal_start_loc)
        metadata.causal = self.causal.build(0, rest)
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> TreeAttentionMetadata:
        common = common_attn_metadata
        if common.max_query_len == 1:
            return TreeAttentionMetadata(causal=self.causal.build_for_cudagraph_capture(common))
        self.buffers.refresh(common, None)
        return self._tree_metadata(common)

    def _num_tree_requests(self, common: CommonAttentionMetadata, trees: StepTrees | None) -> int:
        """The leading requests up to the last one with drafts, or all where no query is longer than theirs."""
        with_drafts = np.zeros(0) if trees is None else np.flatnonzero(trees.num_drafts_np)
        if with_drafts.size == 0:
            return 0
        return common.num_reqs if common.max_query_len <= self.decode_query_len else int(with_drafts[-1]) + 1

    def _tree_metadata(self, common: CommonAttentionMetadata) -> TreeAttentionMetadata:
        return TreeAttentionMetadata(common.num_actual_tokens, self.buffers.batch(common))


def leading_requests(common: CommonAttentionMetadata, count: int, max_query_len: int) -> CommonAttentionMetadata:
    """The first `count` requests of a step.

    Their lengths on the host may be wrong one by one, where trees are trimmed on the device; the sum is right.
    """
    starts = common.query_start_loc_cpu[: count + 1]
    return common.replace(
        **_requests(common, slice(0, count)),
        query_start_loc=common.query_start_loc[: count + 1],
        query_start_loc_cpu=starts,
        num_reqs=count,
        num_actual_tokens=int(starts[-1]),
        max_query_len=max_query_len,
    )


def trailing_requests(common: CommonAttentionMetadata, first: int, start_loc: Tensor) -> CommonAttentionMetadata:
    """The requests from `first` on as a separate step; its query starts are written to `start_loc` [requests + 1]."""
    num_reqs, first_token = common.num_reqs - first, int(common.query_start_loc_cpu[first])
    starts = common.query_start_loc_cpu[first : common.num_reqs + 1] - first_token
    start_loc = start_loc[: num_reqs + 1]
    torch.sub(common.query_start_loc[first : common.num_reqs + 1], first_token, out=start_loc)
    return common.replace(
        **_requests(common, slice(first, common.num_reqs)),
        query_start_loc=start_loc,
        query_start_loc_cpu=starts,
        num_reqs=num_reqs,
        num_actual_tokens=common.num_actual_tokens - first_token,
        max_query_len=int(starts.diff().max()),
        slot_mapping=common.slot_mapping[first_token:],
        positions=None if common.positions is None else common.positions[first_token:],
    )


def _requests(common: CommonAttentionMetadata, rows: slice) -> dict[str, Any]:
    """The fields that have one row for each request."""
    bounds, prefilling, index = common.seq_lens_cpu_upper_bound, common.is_prefilling, common.req_idx
    return {
        "seq_lens": common.seq_lens[rows],
        "block_table_tensor": common.block_table_tensor[rows],
        "seq_lens_cpu_upper_bound": None if bounds is None else bounds[rows],
        "max_seq_len": common.max_seq_len if bounds is None else int(bounds[rows].max()),
        "is_prefilling": None if prefilling is None else prefilling[rows],
        "req_idx": None if index is None else index[rows],
        "_num_computed_tokens_cache": None,
        "_token_to_req_indices_cache": None,
    }
