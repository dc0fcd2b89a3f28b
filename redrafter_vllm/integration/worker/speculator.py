# SPDX-License-Identifier: Apache-2.0
"""The speculator of method `redrafter`: draws the next trees after every step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.adaptive.stored import stored_calibration
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.config import MAX_BEAM_WIDTH
from redrafter_vllm.drafting.buffers import DraftRows, RoundBuffers
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.drafting.step_timer import DraftTimer, StepSize, StepTimes
from redrafter_vllm.integration.speculative_config import RedrafterSpeculativeConfig
from redrafter_vllm.integration.worker.draft_graphs import DraftGraphs
from redrafter_vllm.integration.worker.draft_model import DraftModel
from redrafter_vllm.integration.worker.parallel import (
    TokenInputs,
    all_or_none,
    load_part,
    own_table,
    pack_part,
    refill,
    share_embedding,
    target_rows,
)
from redrafter_vllm.integration.worker.step import DraftStep
from redrafter_vllm.integration.worker.weight_choice import with_faster_weights
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.draft_round import RoundSource
from redrafter_vllm.ops.graft_copies import Texts


class StepObserver(Protocol):
    """What adaptive trees learn from a step, and decide about the round that follows it."""

    def begin_step(self) -> None: ...

    def end_verification(self, batch: InputBatch, num_sampled: Tensor) -> None: ...

    def begins_round(self, is_wanted: bool) -> bool: ...

    @property
    def beam_steps(self) -> int | None: ...  # of the round that begins; None for all

    def end_drafting(self, num_reqs: int) -> None: ...

    @property
    def step_size(self) -> StepSize | None: ...  # of the step that ends; None where its durations are not wanted

    def end_step(self) -> None: ...

    def take_counts(self) -> AdaptiveCounts: ...


class RedrafterSpeculator(BaseSpeculator):
    """Owns the drafter, the draft rows of every request, the buffers of a round and the step in flight.

    A round gathers its inputs into buffers of fixed address and then runs on those alone, so that it can be recorded
    as a CUDA graph for each batch size and length; where none fits it runs without a graph.

    The drafter loads when the runner is built, before the target's weights do, so that a bad checkpoint costs nothing.
    """

    supports_mm_inputs = False
    draft_logits = None

    # The runner builds speculator and model state separately, from nothing in common but the configuration.
    _built: ClassVar["WeakValueDictionary[int, RedrafterSpeculator]"] = WeakValueDictionary()

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: Any) -> None:
        spec = vllm_config.speculative_config
        assert isinstance(spec, RedrafterSpeculativeConfig)
        self.vllm_config, self.device = vllm_config, device
        self.drafting = with_faster_weights(spec.checkpoint, spec.drafting, vllm_config)
        self.drafter = load_part(spec.checkpoint, self.drafting, vllm_config, device)
        self.embedding: TokenInputs | None = None
        self._target: ref[nn.Module] | None = None
        max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        max_nodes = self.drafting.num_speculative_tokens
        self.rows = DraftRows(max_num_reqs, max_nodes, device)
        hidden_size, dtype = self.drafter.config.hidden_size, vllm_config.model_config.dtype
        self.buffers = RoundBuffers(max_num_reqs, max_nodes, hidden_size, dtype, device)
        # Of fixed address. The runner appends what a step has sampled before it asks for the next trees.
        self.texts = Texts(req_states.all_token_ids.gpu, req_states.total_len.gpu)
        # vLLM finds it by its type, to free graphs that it has recorded only to measure their memory.
        self.graphs: DraftGraphs | None = None
        # On the host: a round that no request of the batch wants is skipped.
        self.drafts_wanted = np.ones(max_num_reqs, dtype=np.bool_)
        self.draft_model = DraftModel(self.drafter.config, dtype, self.tensors, self.replace_drafter)
        self.timer = DraftTimer(device)
        self.step: DraftStep | None = None
        self.draws_in_dummy_runs = True
        # All are set where trees adapt. The runner passes the confidences [B, N] of a round to its manager.
        self.survival: SurvivalEstimator | None = None
        self.draft_token_confidence_probs: Tensor | None = None
        self.observer: StepObserver | None = None
        self.is_trimmed_on_device = False  # the host then has upper bounds of each request's rows
        # On the host: requests whose prompts are to be scored.
        self.scores_prompt = np.zeros(max_num_reqs, dtype=np.bool_)
        RedrafterSpeculator._built[id(vllm_config)] = self

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> "RedrafterSpeculator":
        """The speculator that the runner built from this configuration."""
        return cls._built[id(vllm_config)]

    def open_row(self, row: int, beam_limit: int, node_limit: int) -> None:
        """Assign a row to a new request, whose trees keep to these limits."""
        if self.drafting.copies_text and beam_limit == self.drafting.beam_width:
            beam_limit = MAX_BEAM_WIDTH + 1  # copies of the text, too, which are a beam of their own
        self.rows.open(row, beam_limit=beam_limit, node_limit=node_limit)
        if self.survival is not None:
            self.survival.open(row)
        self.drafts_wanted[row] = node_limit > 0

    def rank_by_survival(self) -> None:
        """Rank nodes by their estimated survival from now on."""
        drafting, max_num_reqs = self.drafting, self.rows.padding_row
        max_nodes = drafting.num_speculative_tokens
        self.draft_token_confidence_probs = torch.zeros(max_num_reqs, max_nodes, device=self.device)
        self.survival = SurvivalEstimator(
            max_num_reqs,
            max_nodes,
            drafting.beam_length,
            self.device,
            stored_calibration(Path(self.vllm_config.speculative_config.checkpoint)),
            copies=drafting.copies_text,
        )

    def bind_target(self, model: nn.Module) -> None:
        """Share the target's input embedding, or keep the drafter's product with it."""
        # A weak reference: after vLLM has shut a runner down, its speculator must not keep the target's weights.
        self._target = ref(model)
        self.embedding = share_embedding(model, self.drafter)

    @torch.no_grad()
    def follow_target(self) -> None:
        """The target has got new weights, in place: compute again, in place, what depends on its embedding."""
        refill(self._inputs, target_rows(self._model)[0], self.drafter)

    @torch.no_grad()
    def replace_drafter(self, read: Callable[[], Drafter]) -> bool:
        """Draft with what `read` returns: a drafter of the same config, in the target's dtype.

        Addresses stay the same, as recorded rounds need; trees already drawn are still verified. Every step that may
        fail has run, on every rank, before the first weight changes. Until then both drafters are in memory.

        Returns whether it succeeded: after a failure `all_or_none` raises only on some ranks.
        """
        # Another stage sends them in any case, as it does not know whether this fails.
        rows = target_rows(self._model)[0] if self.drafting.project_embedding else None
        fresh = all_or_none(lambda: pack_part(read(), self.drafting, self.vllm_config, self.device), self.vllm_config)
        if fresh is None:
            return False
        self.drafter.adopt(fresh)
        if rows is not None:
            refill(self._inputs, rows, self.drafter)
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The tensors being drafted with, by name, without those of the target."""
        table = own_table(self._inputs, self._model)
        return self.drafter.tensors() | ({} if table is None else {"token_inputs": table})

    @property
    def _model(self) -> nn.Module:
        model = None if self._target is None else self._target()
        assert model is not None
        return model

    @property
    def _inputs(self) -> TokenInputs:
        assert self.embedding is not None
        return self.embedding

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        # Only trees that adapt ask for rounds that are not whole.
        shorter = () if self.observer is None else self.drafting.round_lengths[:-1]
        self.graphs = DraftGraphs(self.vllm_config, self.device, cudagraph_mode, shorter)

    def capture(self) -> None:
        assert self.graphs is not None
        self.timer = DraftTimer(self.device)  # forget the steps of the warm-up
        self.buffers.idle(self.rows.padding_row)
        self.graphs.record(self._run_round)

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
        last_sampled: Tensor,  # [P, 1]
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
        num_reqs, idx_mapping = input_batch.num_reqs, input_batch.idx_mapping
        node_budget = self.drafting.num_speculative_tokens if num_speculative_tokens is None else num_speculative_tokens
        step, self.step = self.step, None
        if dummy_run and not self.draws_in_dummy_runs:
            return self.buffers.draft_tokens[:num_reqs]
        if not dummy_run:
            self._learn(step, input_batch, num_sampled)
            self.timer.begin_drafting()
            if not self._begins_round(node_budget, input_batch):
                self.rows.clear(idx_mapping)
                self._end_step()
                return self.buffers.draft_tokens[:num_reqs]
        if step is not None and step.batch is input_batch:
            context_token = step.context_token()
        else:
            context_token = input_batch.logits_indices, None
        limits = self.rows.beam_limit, self.rows.node_limit
        source = RoundSource(last_hidden_states, *context_token, idx_mapping, last_sampled, num_sampled, *limits)
        graph = None if self.graphs is None or is_profile else self.graphs.of(num_reqs)
        size = num_reqs if graph is None else graph.num_tokens
        # The requests of a dummy run own no rows.
        self.buffers.fill(size, source, node_budget, 0 if dummy_run else num_reqs, self.rows.padding_row)
        beam_steps = None if dummy_run or self.observer is None else self.observer.beam_steps
        if graph is None:
            self._run_round(num_reqs, beam_steps)
        else:
            assert self.graphs is not None
            self.graphs.replay(graph, beam_steps)
        if not dummy_run:
            if self.observer is not None:
                self.observer.end_drafting(num_reqs)
            self._end_step()
        return self.buffers.draft_tokens[:num_reqs]

    def _end_step(self) -> None:
        self.timer.end_step(None if self.observer is None else self.observer.step_size)
        if self.observer is not None:
            self.observer.end_step()

    def take_counts(self) -> tuple[StepTimes, AdaptiveCounts]:
        """What has been counted since the last call, of steps that the device has finished."""
        return self.timer.take(), NO_COUNTS if self.observer is None else self.observer.take_counts()

    def _learn(self, step: DraftStep | None, batch: InputBatch, num_sampled: Tensor) -> None:
        if self.survival is not None and step is not None and step.walk is not None and step.verified is not None:
            self.survival.grade(batch.idx_mapping, step.verified, step.walk)
        if self.observer is not None:
            self.observer.end_verification(batch, num_sampled)

    def _begins_round(self, node_budget: int, batch: InputBatch) -> bool:
        is_wanted = node_budget > 0 and bool(self.drafts_wanted[batch.idx_mapping_np].any())
        return is_wanted if self.observer is None else self.observer.begins_round(is_wanted)

    @contextmanager
    def without_drafting(self) -> Iterator[None]:
        """Dummy runs draw nothing meanwhile."""
        self.draws_in_dummy_runs = False
        try:
            yield
        finally:
            self.draws_in_dummy_runs = True

    @torch.inference_mode()
    def run_idle_round(self, size: int, beam_steps: int | None = None) -> None:
        """A round for `size` requests, whose trees nobody reads."""
        self.buffers.idle(self.rows.padding_row)
        self._run_round(size, beam_steps)

    def _run_round(self, size: int, beam_steps: int | None = None) -> None:
        """Draw and store the trees of the first `size` requests in the buffers; this is what a graph records."""
        assert self.embedding is not None
        inputs = self.buffers.first(size)
        survival, rank = self.survival, None
        if survival is not None:
            rank = partial(survival.rank, rows=inputs.rows)
        given = inputs.context, inputs.roots, inputs.beam_limit, self.drafting
        texts = self.texts, inputs.rows
        tree = propose_trees(self.drafter, self.embedding, *given, rank, beam_steps, texts)
        if survival is not None:
            assert self.draft_token_confidence_probs is not None
            survival.store(inputs.rows, tree, inputs.node_budget, self.draft_token_confidence_probs[:size])
        self.rows.write(inputs.rows, tree, inputs.node_budget, self.buffers.draft_tokens[:size])
