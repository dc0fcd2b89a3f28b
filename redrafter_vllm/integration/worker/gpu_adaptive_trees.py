# SPDX-License-Identifier: Apache-2.0
"""Adaptive trees on a GPU: vLLM's `AdaptiveVerificationManager`, with the policy of trees.

When a step's batch is built, the host does not know the trees that it will verify: the device may still be drawing
them. So the size of the budget comes from the trees of the step before, copied to the host, and which nodes it admits
is decided on the device, from the trees themselves. Each query's true length is then on the device alone; the host has
an even share of the budget, of which only the sum is right.

All ranks of a parallel target decide the same: from estimates that are the same to the bit, and from durations that
the first rank has measured and sends to the others. Nothing else depends on when a result arrives.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.v1.utils import CpuGpuBuffer
from vllm.v1.worker.gpu.async_utils import StepTimingSample, stream
from vllm.v1.worker.gpu.attn_utils import (
    get_query_lens_mismatch_unsupported_backend,
    get_varlen_cudagraph_unsupported_backend,
)
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.spec_decode import adaptive_verification
from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from redrafter_vllm.adaptive.budget import Budget, choose_budget, survival_of
from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.adaptive.record import AdaptiveCounts, Record
from redrafter_vllm.adaptive.rounds import RoundChoice
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.drafting.step_timer import StepSize, TimedStep
from redrafter_vllm.integration.attention.metadata import TreeMetadataBuilder
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.worker.adaptive_report import StepRecords, log_reason, why_nowhere
from redrafter_vllm.integration.worker.cost_measurement import time_recorded_rounds
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from redrafter_vllm.ops.survival import MOST_SAVED

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

NEW_REQUEST_RATE = 0.02  # by which a step moves the estimate for requests whose trees the host has not seen
SHARED_INTERVAL = 32  # steps after which all ranks learn what the steps before have taken on the first one


def runs_on_host(device: torch.device) -> bool:
    """Whether steps end before the host goes on: `adaptive_trees` then decides."""
    return device.type == "cpu"


@report_start_errors
def create_manager(runner: Any) -> "GpuAdaptiveTrees | None":
    """The manager of a runner whose attention groups are made, or None where its trees do not adapt.

    On a GPU a line of the log then says why; for a CPU `adaptive_trees` decides later.
    """
    # Stages of a pipeline before the last one have no trees.
    if runs_on_host(runner.device) or not runner.is_last_pp_rank:
        return None
    vllm_config, attn_groups, speculator = runner.vllm_config, runner.attn_groups, runner.speculator
    adaptive = speculator.drafting.adaptive
    if adaptive is False:
        return None
    if reason := _why_not(vllm_config, attn_groups, adaptive):
        log_reason(adaptive, reason)
        return None
    for builder in (builder for groups in attn_groups for group in groups for builder in group.metadata_builders):
        if isinstance(builder, TreeMetadataBuilder):
            builder.has_graphs_of_any_length = True
    if speculator.survival is None:  # vLLM allocates a cache twice, the first time to measure memory
        speculator.rank_by_survival()
    manager = GpuAdaptiveTrees(
        speculator,
        runner.req_states,
        runner.input_buffers.query_start_loc,
        runner.model_state.num_new_sampled_tokens_per_step,
        get_max_chunk_logits(runner.vocab_size),
    )
    speculator.observer, speculator.is_trimmed_on_device = manager, True
    return manager


def _why_not(config: VllmConfig, attn_groups: list[list[Any]], adaptive: bool | None) -> str | None:
    """What the trees of this engine cannot adapt with; None where they can."""
    compilation = config.compilation_config
    if config.parallel_config.pipeline_parallel_size > 1:
        return "in a pipeline only the last stage knows the trees"
    if reason := why_nowhere(config, adaptive):
        return reason
    if not compilation.cudagraph_mode.has_full_cudagraphs():
        return "this needs full CUDA graphs (no enforce_eager, cudagraph_mode FULL, FULL_DECODE_ONLY or its default)"
    longest = 1 + config.num_speculative_tokens
    if min(compilation.cudagraph_capture_sizes or [0]) > longest * config.scheduler_config.max_num_seqs:
        return "cudagraph_capture_sizes has no size that a step of decoding fits"
    if (name := get_query_lens_mismatch_unsupported_backend(attn_groups)) is not None:
        return f"the attention backend {name} needs each query's length on the host"
    if (unsupported := get_varlen_cudagraph_unsupported_backend(attn_groups, config, longest)) is not None:
        return f"the attention backend {unsupported[0]} has no CUDA graphs for queries of mixed lengths"
    return None


class GpuAdaptiveTrees(AdaptiveVerificationManager):
    """Chooses the number of nodes of each step, whether a round is drawn at all, and of how many beam steps.

    vLLM's methods measure the costs at the start, admit the nodes on the device and copy estimates to the host. Up to
    `record_confidences` the methods here are the runner's hooks, the others are the speculator's.
    """

    def __init__(self, speculator: RedrafterSpeculator, *parts: Any) -> None:
        super().__init__(*parts)
        self.speculator = speculator
        # Known once costs have been measured; until then every round that is wanted is drawn.
        self.costs: StepCosts | None = None
        self.rounds: RoundChoice | None = None
        # By beam steps: (requests, seconds that such a round takes less than a whole one).
        self._saved_by_short_rounds: dict[int, list[tuple[int, float]]] = {}
        self._budget: Budget | None = None  # of the step that is being prepared, where drafts were scheduled
        self._num_reqs = 0  # of the step that has been queued last
        # What a tree's estimates are like, for requests whose own the host has not seen.
        self._usual = np.full(self.num_speculative_steps, 0.5, dtype=np.float32)
        self._new_rows: list[int] = []
        # Beside each of vLLM's two copies of estimates: the rows of the trees that its round has drawn, the beam steps
        # of that round, and the kinds of the nodes if it was a whole one.
        states = self.req_states
        shape = states.max_num_reqs, self.num_speculative_steps
        self._stale_kinds = [CpuGpuBuffer(*shape, dtype=torch.int8, device=states.device) for _ in range(2)]
        self._stale_drawn = [np.zeros(states.max_num_reqs, dtype=np.bool_) for _ in range(2)]
        self._stale_rounds = [0, 0]
        self._is_drawn = False  # the round before the step
        self.step_size: StepSize | None = None
        self._until_shared = SHARED_INTERVAL
        self.records = StepRecords()

    def set_initial_cost_curves(self, samples: list[StepTimingSample]) -> None:
        """Durations of steps with whole rounds, which vLLM has timed; what short rounds save is measured here."""
        lengths = {1, self.speculator.drafting.round_lengths[0]}  # the others are interpolated
        whole = time_recorded_rounds(self.speculator, self.speculator.drafting.beam_length)
        short = {steps: time_recorded_rounds(self.speculator, steps) for steps in sorted(lengths)}
        own = {
            steps: [(size, seconds - less) for (size, seconds), (_, less) in zip(whole, points, strict=True)]
            for steps, points in short.items()
        }
        self._saved_by_short_rounds = get_tp_group().broadcast_object(own, src=0)
        self._compile_choice()
        super().set_initial_cost_curves(samples)

    @torch.inference_mode()  # as in a step, whose tensors would otherwise be compiled for once more
    def _compile_choice(self) -> None:
        """Compile vLLM's choice of nodes, for one or more requests and nodes: the first steps would wait for it."""
        for num_reqs in range(1, 1 + min(2, self.req_states.max_num_reqs)):
            rows = torch.arange(num_reqs, dtype=torch.int32, device=self.req_states.device)
            for budget in range(1, 1 + min(2, num_reqs * self.num_speculative_steps)):
                capacities = self._batch_draft_capacity[:num_reqs].fill_(self.num_speculative_steps)
                adaptive_verification._assign_draft_token_budget_compiled(
                    self._confidence_probs, rows, capacities, budget, self.num_speculative_steps
                )

    def set_cost_curves(self, draft_curve: list[tuple[int, float]], verify_curve: list[tuple[int, float]]) -> None:
        """vLLM's tables, which every step that follows corrects."""
        super().set_cost_curves(draft_curve, verify_curve)
        assert self.cost_tables is not None
        drafting, verification = ([*enumerate(1e-3 * table)][1:] for table in self.cost_tables)
        first_beam_step, copies_alone = (
            [
                (size, max(drafting[size - 1][1] - saved, 0.0))
                for size, saved in self._saved_by_short_rounds.get(steps, ())
            ]
            for steps in (1, 0)
        )
        measured = MeasuredCosts(
            verification,
            per_request=0.0,  # which is in those of the rows
            drafting=drafting,
            first_beam_step=first_beam_step,
            copies_alone=copies_alone,
            beam_length=self.speculator.drafting.beam_length,
        )
        self.costs = StepCosts(measured, len(verification), len(drafting))
        self.rounds = RoundChoice(self.costs, self.num_speculative_steps)
        if get_tp_group().rank_in_group == 0:
            logger.info("ReDrafter: trees adapt to load and confidence; measured %s", measured.at_powers_of_two())

    def add_request(self, req_idx: int) -> None:
        """A request has got a row; on the device it has no node, which vLLM would take for one that is certain."""
        super().add_request(req_idx)
        self._confidence_probs[req_idx].zero_()
        self._forget_stale(req_idx)
        self._new_rows.append(req_idx)

    def _forget_stale(self, rows: int | list[int]) -> None:
        """What the host has of these rows is of requests that had them before."""
        self._stale_confidences[self._stale_idx].np[rows] = self._usual
        self._stale_drawn[self._stale_idx][rows] = False

    def get_num_tokens(self, num_tokens_per_req: dict[str, int], draft_tokens: dict[str, list[int]]) -> int:
        """Tokens of the step with the budget's nodes only."""
        states, req_ids = self.req_states, list(num_tokens_per_req)
        rows = np.array([states.req_id_to_index[req_id] for req_id in req_ids])
        num_tokens = np.array([num_tokens_per_req[req_id] for req_id in req_ids])
        num_drafts = np.array([len(draft_tokens.get(req_id, ())) for req_id in req_ids])
        num_others = num_tokens - num_drafts
        prefill_lens = states.prefill_len.np[rows]
        is_prefilling = states.num_computed_tokens_np[rows] < prefill_lens
        is_emitting = states.num_computed_tokens_np[rows] + num_others >= prefill_lens
        # vLLM finds a prompt's scores by the host's query lengths, which are exact only without drafts.
        needs_lengths = is_prefilling & (num_drafts > 0) & self.speculator.scores_prompt[rows]
        limit = 0 if needs_lengths.any() or not self._is_drawn else self._max_total_logits - len(rows)
        self._budget = self._choose(rows, num_drafts, int(num_others.sum()), int(is_emitting.sum()), max(limit, 0))
        total = int(self._budget.num_nodes.sum())
        by_request = (dict(zip(req_ids, values.tolist(), strict=True)) for values in (num_drafts, num_others))
        self._batch_budget = (*by_request, total)
        return int(num_others.sum()) + total

    def _choose(
        self, rows: np.ndarray, num_drafts: np.ndarray, num_others: int, num_emitting: int, limit: int
    ) -> Budget:
        """The budget of at most `limit` nodes; which ones is known to the device."""
        assert self.costs is not None and self.rounds is not None
        confidences = self._stale_confidences[self._stale_idx].np[rows]
        if (has_drafts := num_drafts > 0).any():
            self._usual += NEW_REQUEST_RATE * (confidences[has_drafts].mean(0) - self._usual)
        survival = survival_of(MOST_SAVED * np.cumprod(confidences, axis=1, dtype=np.float64))
        survival[np.arange(survival.shape[1]) >= num_drafts[:, None]] = 0
        self._remember(rows, survival)
        num_reqs, most = len(rows), min(limit, int(num_drafts.sum()))
        next_round = self.costs.drafting(num_reqs, self.rounds.outlook.beam_steps(num_reqs))
        target = self.costs.verification(num_others, num_others + most, num_reqs)
        seconds = target + self.costs.between(num_reqs, is_drawn=self._is_drawn) + next_round
        return choose_budget(survival, num_emitting, seconds)

    def _remember(self, rows: np.ndarray, survival: np.ndarray) -> None:
        """Tell the outlook of each tree once, and of none of a prompt that has not been read to its end."""
        assert self.rounds is not None
        drawn, beam_steps = self._stale_drawn[self._stale_idx], self._stale_rounds[self._stale_idx]
        if not (is_new := drawn[rows] & (survival[:, 0] > 0)).any():
            return
        if beam_steps == self.speculator.drafting.beam_length:
            kinds = torch.from_numpy(self._stale_kinds[self._stale_idx].np[rows[is_new]])
            self.rounds.outlook.remember(survival[is_new], self._survival.beam_steps_of(kinds).numpy())
        else:
            self.rounds.outlook.remember_short(survival[is_new], beam_steps)
        drawn[rows[is_new]] = False

    def record_confidences(self, confidence_probs: Tensor, input_batch: InputBatch) -> None:
        """A round has been drawn, or has not: the estimates before it then stay, for the next one."""
        if not self._is_drawn:
            return
        self._note_round(input_batch)
        super().record_confidences(confidence_probs, input_batch)
        self._forget_stale(self._new_rows)
        self._new_rows.clear()

    def _note_round(self, batch: InputBatch) -> None:
        """Note whose trees have been drawn, and queue the copy of what the nodes of a whole round are.

        It ends before vLLM's copy, which is queued next.
        """
        slot, drawn = self._stale_kinds[self._stale_idx], self._stale_drawn[self._stale_idx]
        drawn.fill(False)
        drawn[batch.idx_mapping_np] = True
        length = self.speculator.drafting.beam_length
        # By what was chosen: the round that is recorded may be longer.
        chosen = self._stale_rounds[self._stale_idx] = length if self.rounds is None else self.rounds.beam_steps
        if chosen != length:
            return
        slot.gpu.copy_(self._survival.estimates.kinds[: len(drawn)])
        current_stream = torch.cuda.current_stream(self.req_states.device)
        self._copy_stream.wait_stream(current_stream)
        with stream(self._copy_stream, current_stream):
            slot.copy_to_cpu()

    @property
    def _survival(self) -> SurvivalEstimator:
        assert self.speculator.survival is not None
        return self.speculator.survival

    def begin_step(self) -> None:
        """The target's step begins."""

    def end_verification(self, batch: InputBatch, num_sampled: Tensor) -> None:
        """The target's step has been queued; judges by what is expected of it, as its result is not on the host yet."""
        budget, self._budget, self.step_size = self._budget, None, None
        self._num_reqs = num_reqs = batch.num_reqs
        if self.costs is None or self.rounds is None:
            return
        if batch.has_prefill:
            return
        self.step_size = StepSize(batch.num_tokens, num_reqs, after_round=self._is_drawn, beam_steps=None)
        plain = taken = self.costs.plain(num_reqs) + self.costs.between(num_reqs, is_drawn=False)
        tokens = num_reqs if budget is None else budget.tokens
        if self._is_drawn:
            taken = self.costs.after_round(batch.num_tokens, num_reqs)
            taken += self.costs.between(num_reqs, is_drawn=True) + self.costs.drafting(num_reqs, self.beam_steps)
            self.rounds.judge(num_reqs, tokens, taken, num_reqs, plain)
        self.records.add(
            Record(
                steps=1,
                skipped_rounds=int(self.rounds.is_paused),
                nodes=batch.num_tokens - num_reqs,
                expected=tokens - num_reqs,
                accepted=None,
                seconds=taken,
                plain_seconds=plain * tokens / num_reqs,
            )
        )

    def take_counts(self) -> AdaptiveCounts:
        """What has been counted since the last call."""
        return self.records.take_counts()

    def begins_round(self, is_wanted: bool) -> bool:
        """Whether a round is drawn after this step; it is not where no request of the batch wants one."""
        self._is_drawn = is_wanted if self.rounds is None else self.rounds.choose(self._num_reqs, is_wanted=is_wanted)
        return self._is_drawn

    @property
    def beam_steps(self) -> int | None:
        """Of the round that is drawn next, or was last, among those that are recorded; None for all."""
        if self.rounds is None:
            return None
        return next(steps for steps in self.speculator.drafting.round_lengths if steps >= self.rounds.beam_steps)

    def end_drafting(self, num_reqs: int) -> None:
        """A round has been queued."""
        if self.step_size is not None:
            self.step_size = self.step_size._replace(beam_steps=self.beam_steps)

    def end_step(self) -> None:
        """All of the step has been queued; every so often, corrects the costs by the steps finished meanwhile."""
        if self.costs is None:
            return
        self._until_shared -= 1
        if self._until_shared > 0:
            return
        self._until_shared = SHARED_INTERVAL
        for step in get_tp_group().broadcast_object(self.speculator.timer.take_steps(), src=0):
            _observe(self.costs, step)


def _observe(costs: StepCosts, step: TimedStep) -> None:
    """Correct the costs by a step without prompts."""
    size, num_requests = step.size, step.size.num_requests
    if step.between is not None:
        costs.observe_between(num_requests, step.between, is_drawn=size.after_round)
    if size.after_round:
        costs.observe_verification(size.rows, num_requests, step.target)
    elif size.rows == num_requests:
        costs.observe_plain(num_requests, step.target)
    if size.beam_steps is not None:
        costs.observe_drafting(num_requests, step.drafting, size.beam_steps)
