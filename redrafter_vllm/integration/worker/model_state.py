# SPDX-License-Identifier: Apache-2.0
"""The model state of method `redrafter`: vLLM's hooks around the target's forward pass."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelSpecificAttnMetadata
from vllm.v1.worker.utils import AttentionGroup

from redrafter_vllm.integration.attention.metadata import StepTrees
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.integration.worker.requests import needs_chain
from redrafter_vllm.integration.worker.sampler import TreeSampler
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from redrafter_vllm.integration.worker.step import DraftStep
from redrafter_vllm.ops.kv_compact import prepare
from redrafter_vllm.request_settings import parse_request_settings


class TreeAttnMetadata(ModelSpecificAttnMetadata):
    """Passes the step's trees to the attention backend's metadata builder."""

    def __init__(self, step: DraftStep) -> None:
        self.step = step

    def get_extra_attn_kwargs(self, attn_metadata_builder: Any, num_reqs: int) -> dict[str, Any]:
        step = self.step
        if step.drafts is None or step.layout is None:
            return {}
        query_lens = step.batch.num_scheduled_tokens
        return {"trees": StepTrees(step.drafts.ancestors, step.layout.num_drafts, step.num_drafts_np, query_lens)}


class RedrafterModelState(DefaultModelState):
    """Sets the rotary positions and the attention of nodes, verifies by walking, and compacts the cache.

    Order within a step, as vLLM's runner calls it: `prepare_attn`, the forward pass, the sampler from
    `custom_sampler`, `postprocess_state`, then the speculator's `propose`.
    """

    @report_start_errors
    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.speculator = RedrafterSpeculator.of(vllm_config)
        self.speculator.bind_target(model)
        self.is_chain = self.speculator.drafting.is_chain
        self.cache_layers: list[Any] = []
        self.rows_per_request: np.ndarray | None = None  # [B] of the step whose adapters are about to be set

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        drafting = self.speculator.drafting
        settings = parse_request_settings(params.extra_args if params is not None else None, drafting)
        beam_limit = 1 if needs_chain(params) else settings.beam_limit(drafting)
        self.speculator.open_row(req_index, beam_limit, settings.node_limit(drafting))
        self.speculator.scores_prompt[req_index] = params is not None and (
            params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None
        )

    @report_start_errors
    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if self.is_chain:
            return
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise UnsupportedTargetError(
                f"ReDrafter's trees need one kind of attention layer, but the cache has "
                f"{len(kv_cache_config.kv_cache_groups)} groups; use beam_width=1."
            )
        layers = self.vllm_config.compilation_config.static_forward_context
        own = [layers[name] for name in kv_cache_config.kv_cache_groups[0].layer_names]
        # Layers may share a cache; moving its entries twice would undo the move.
        self.cache_layers = list({layer.kv_cache.data_ptr(): layer for layer in own}.values())
        prepare(self.kv_caches)

    @property
    def kv_caches(self) -> list[Tensor]:
        """Entries of all layers' caches, read anew: after measuring graphs vLLM frees the caches that layers hold."""
        return [entries for layer in self.cache_layers for entries in layer.impl.entries(layer.kv_cache)]

    def preprocess_state(
        self,
        input_batch: InputBatch,
        block_tables: tuple[Tensor, ...],
        kv_cache_config: KVCacheConfig,
        num_computed_tokens: Tensor,
    ) -> None:
        super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
        self.rows_per_request = np.diff(input_batch.cu_num_logits_np)

    def per_logits_row(self, lora_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Adapters of the requests [B] as adapters of the logits rows [R]; a dummy run has one row a request."""
        rows, self.rows_per_request = self.rows_per_request, None
        return lora_ids if rows is None else tuple(np.repeat(lora_ids, rows))

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[Tensor, ...],
        slot_mappings: Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        model_specific_attn_metadata: ModelSpecificAttnMetadata | None = None,
    ) -> dict[str, Any]:
        if not for_capture:
            self.speculator.timer.begin_step()
            if self.speculator.observer is not None:
                self.speculator.observer.begin_step()
        step = DraftStep.begin(input_batch, slot_mappings, self.speculator.rows)
        self.speculator.step = step
        return super().prepare_attn(
            input_batch,
            cudagraph_mode,
            block_tables,
            slot_mappings,
            attn_groups,
            kv_cache_config,
            for_capture,
            ubatch_idx,
            None if self.is_chain else TreeAttnMetadata(step),
        )

    @report_start_errors
    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        return sampler, TreeSampler(sampler, self.speculator)

    def postprocess_state(
        self, idx_mapping: Tensor, num_sampled: Tensor, num_computed_tokens: Tensor | None = None
    ) -> None:
        step = self.speculator.step
        if self.is_chain or step is None:
            return
        step.compact(self.kv_caches)
