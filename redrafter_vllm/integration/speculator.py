# SPDX-License-Identifier: Apache-2.0
"""The speculator of method `redrafter`: draws the next trees after every step."""

from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from redrafter_vllm.drafter import Drafter
from redrafter_vllm.integration.speculative_config import RedrafterSpeculativeConfig
from redrafter_vllm.integration.step import DraftStep
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.speculator import draw_trees
from redrafter_vllm.state import DraftRows


class RedrafterSpeculator(BaseSpeculator):
    """Owns the drafter, the draft rows of every request and the step in flight.

    The drafter loads when the runner is built, before the target's weights do, so that a bad checkpoint costs nothing.
    """

    supports_mm_inputs = False
    draft_logits = None

    # The runner builds speculator and model state apart and gives both nothing in common but the configuration.
    _built: ClassVar["WeakValueDictionary[int, RedrafterSpeculator]"] = WeakValueDictionary()

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        spec = vllm_config.speculative_config
        assert isinstance(spec, RedrafterSpeculativeConfig)
        self.drafting = spec.drafting
        self.drafter = Drafter.from_pretrained(spec.checkpoint, dtype=vllm_config.model_config.dtype, device=device)
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.embedding: Tensor | None = None  # [V, H]
        max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        self.rows = DraftRows(max_num_reqs, self.drafting.num_speculative_tokens, device)
        self.step: DraftStep | None = None
        RedrafterSpeculator._built[id(vllm_config)] = self

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> "RedrafterSpeculator":
        """The speculator that the runner built from this configuration."""
        return cls._built[id(vllm_config)]

    def bind_target(self, model: nn.Module) -> None:
        """Share the target's input embedding."""
        tables = [
            module
            for module in model.modules()
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        ]
        if len(tables) != 1:
            raise UnsupportedTargetError(
                f"ReDrafter shares the target's token embedding, but {type(model).__name__} has {len(tables)} of them."
            )
        method = tables[0].quant_method
        if not isinstance(method, UnquantizedEmbeddingMethod):
            raise UnsupportedTargetError(
                f"ReDrafter shares the target's token embedding, which {type(method).__name__} has quantised; leave "
                "the embedding out of the quantisation."
            )
        self.embedding = tables[0].weight[: self.vocab_size]

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        return None

    def capture(self) -> None:
        return None

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Tensor,  # [tokens, H]
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,  # [B]
        num_rejected: Tensor,  # [B]
        last_sampled: Tensor,  # [R, 1]
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:  # [B, N]
        """Draw the trees that the next step verifies; see `BaseSpeculator.propose`."""
        assert self.embedding is not None
        rows = input_batch.idx_mapping
        limit = self.drafting.num_speculative_tokens if num_speculative_tokens is None else num_speculative_tokens
        if limit == 0 and not dummy_run:
            self.rows.clear(rows)
            return self.rows.tokens[rows]
        step = self.step
        if step is not None and step.batch is input_batch:
            context_tokens = step.context_tokens()
        else:
            context_tokens = input_batch.logits_indices.long()
        tree = draw_trees(
            self.drafter,
            self.embedding,
            last_hidden_states[context_tokens],
            last_sampled[rows, 0],
            self.rows.chain_only[rows],
            self.drafting,
        )
        if not dummy_run:
            self.rows.write(rows, tree, num_sampled > 0, limit)
        self.step = None
        return tree.tokens.long()
