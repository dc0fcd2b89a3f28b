# SPDX-License-Identifier: Apache-2.0
"""Adaptive trees on a CPU: fills the place of vLLM's `AdaptiveVerificationManager`, which is made of CUDA streams.

The runner asks for a step's tokens before it prepares the step, and then builds the shorter batch. Where the device is
the host, the trees' survival is known by then, and so is every request's share of the budget.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

from redrafter_vllm.adaptive.budget import Budget, choose_budget, given_budget
from redrafter_vllm.adaptive.costs import StepCosts
from redrafter_vllm.adaptive.record import AdaptiveCounts, Record
from redrafter_vllm.adaptive.rounds import RoundChoice
from redrafter_vllm.integration.versions import installed_before
from redrafter_vllm.integration.worker.adaptive_report import StepRecords, log_reason, why_not_on_cpu
from redrafter_vllm.integration.worker.cost_measurement import measure_costs
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

TRIAL_INTERVAL = 4  # steps between two of sizes that have not been seen
TRIED_BEYOND = 2  # such a size has at most so many times the nodes that seem to pay


def adapt_trees(runner: Any) -> None:
    """Let the trees of a runner on a CPU, about to serve, adapt to load and confidence, or log why they do not."""
    config, speculator = runner.vllm_config, runner.speculator
    adaptive = config.speculative_config.drafting.adaptive
    if adaptive is False:
        return
    if reason := why_not_on_cpu(config, adaptive):
        log_reason(adaptive, reason)
        return
    speculator.rank_by_survival()
    speculator.observer = runner.adaptive_verification = AdaptiveTrees(runner, speculator)


class AdaptiveTrees:
    """Chooses the nodes of each step, and whether a round is drawn at all.

    The methods up to `record_confidences` are the runner's hooks, the others are the speculator's.
    """

    def __init__(self, runner: Any, speculator: RedrafterSpeculator) -> None:
        self.runner, self.speculator = runner, speculator
        measured = measure_costs(runner, speculator)
        logger.info("ReDrafter: trees adapt to load and confidence; measured %s", measured)
        max_requests = runner.max_num_reqs
        max_rows = max(runner.max_num_tokens, max_requests * runner.decode_query_len)
        self.costs = StepCosts(measured, max_rows, max_requests)
        self.rounds = RoundChoice(self.costs, speculator.drafting.num_speculative_tokens)
        self.outlook = self.rounds.outlook
        self._num_reqs = 0  # of the step that has ended last
        self._budget: Budget | None = None  # of the step that is being prepared
        self._num_others = self._num_emitting = 0  # of that step: rows that are no nodes, and requests that emit
        self._cu_num_logits: np.ndarray | None = None
        self._began: float | None = None
        # When the target's last step ended, where its round began; and when all of the last step did.
        self._verified = self._ended = time.perf_counter()
        self._between = 0.0  # seconds from there to the step that runs now
        self._until_trial = TRIAL_INTERVAL  # steps
        # Rows that a step has had. The first step with so many takes up to a fifth longer, as matrix products are
        # prepared for each number of rows.
        self._prepared_rows: set[int] = set()
        self.records = StepRecords()

    def add_request(self, req_idx: int) -> None:
        """A request has got a row; `RedrafterSpeculator.open_row` does what is needed."""

    def get_num_tokens(self, num_tokens_per_req: dict[str, int], draft_tokens: dict[str, list[int]]) -> int:
        """Tokens of the step with the budget's nodes only."""
        states = self.runner.req_states
        req_ids = sort_batch_req_ids(num_tokens_per_req, draft_tokens, self.runner.decode_query_len)
        rows = np.array([states.req_id_to_index[req_id] for req_id in req_ids])
        num_tokens = np.array([num_tokens_per_req[req_id] for req_id in req_ids])
        num_drafts = np.array([len(draft_tokens.get(req_id, ())) for req_id in req_ids])
        num_others = num_tokens - num_drafts
        is_emitting = states.num_computed_tokens_np[rows] + num_others >= states.prefill_len.np[rows]
        self._num_others, self._num_emitting = int(num_others.sum()), int(is_emitting.sum())
        self._budget = self._choose(rows, num_drafts, self._num_others, self._num_emitting)
        return self._num_others + int(self._budget.num_nodes.sum())

    def _choose(self, rows: np.ndarray, num_drafts: np.ndarray, num_others: int, num_emitting: int) -> Budget:
        speculator, num_reqs = self.speculator, len(rows)
        assert speculator.survival is not None
        num_nodes = np.minimum(speculator.rows.num_nodes.numpy()[rows], num_drafts)
        if not num_nodes.any():  # there is nothing to choose; nobody reads the seconds
            return Budget(num_nodes, float(num_emitting), 0.0)
        survival = np.exp(speculator.survival.log_survival.numpy()[rows])
        survival = np.where(np.arange(survival.shape[1]) < num_nodes[:, None], survival, 0.0)
        has_tree = num_nodes > 0
        if self.beam_steps == self.costs.beam_length:
            beam_steps = speculator.survival.beam_steps(torch.from_numpy(rows[has_tree])).numpy()
            self.outlook.remember(survival[has_tree], beam_steps)
        else:
            self.outlook.remember_short(survival[has_tree], self.beam_steps)
        most = num_others + int(num_nodes.sum())
        survival = self.outlook.trust * survival
        next_round = self.costs.drafting(num_reqs, self.outlook.beam_steps(num_reqs))
        target = self.costs.verification(num_others, most, num_reqs)
        seconds = target + self.costs.between(num_reqs, is_drawn=self.rounds.is_drawn) + next_round
        budget = choose_budget(survival, num_emitting, seconds)
        if num_others == num_reqs:
            limit = min(most, num_reqs + TRIED_BEYOND * int(budget.num_nodes.sum()))
            if (to_try := self._to_try(num_reqs, limit)) is not None:
                return given_budget(survival, num_emitting, seconds, to_try)
        return budget

    def _to_try(self, num_reqs: int, limit: int) -> int | None:
        """Nodes of a step that is to show how long such a one takes; None where it may have any, up to `limit` rows."""
        self._until_trial -= 1
        if self._until_trial <= 0:
            self._until_trial = TRIAL_INTERVAL
            rows = self.costs.unseen(num_reqs + 1, limit)
            return None if rows is None else rows - num_reqs
        return None

    def compact_batch(
        self, num_draft_tokens_per_req: np.ndarray, num_scheduled_tokens: np.ndarray, cu_num_logits_np: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each request [B] and starts of their logits rows [B + 1], in the batch's order."""
        assert self._budget is not None
        num_nodes = self._budget.num_nodes.astype(num_scheduled_tokens.dtype)
        starts = np.zeros_like(cu_num_logits_np)
        np.cumsum(num_nodes + 1, out=starts[1:])
        self._cu_num_logits = starts
        return num_scheduled_tokens - num_draft_tokens_per_req + num_nodes, starts

    def reallocate_drafts(self, req_ids: list[str], idx_mapping: Tensor) -> tuple[Any, ...]:
        """Starts of the logits rows, of the tokens, and the number of nodes.

        The runner has already written the starts of the tokens, which are exact on the host. vLLM 0.33 also takes each
        request's drafts, where they have to be copied to the host.
        """
        assert self._budget is not None and self._cu_num_logits is not None
        starts, total = torch.from_numpy(self._cu_num_logits), int(self._budget.num_nodes.sum())
        found = starts, self.runner.input_buffers.query_start_loc, total
        return found if installed_before("0.33") else (*found, None)

    def record_confidences(self, confidence_probs: Tensor | None, input_batch: InputBatch) -> None:
        """vLLM copies a GPU's estimates to the host here."""

    def begin_step(self) -> None:
        """The target's step begins."""
        self._began = time.perf_counter()
        self._between = self._began - self._ended

    def end_verification(self, batch: InputBatch, num_sampled: Tensor) -> None:
        """The target's step has ended; learns from it how long such a step takes, and whether drafting pays."""
        now = time.perf_counter()
        passed = now - self._verified
        began, self._began, self._verified, self._ended = self._began, None, now, now
        budget, self._budget = self._budget, None
        self._num_reqs = batch.num_reqs
        if began is None or (batch.has_prefill and budget is None):
            return
        num_reqs, num_rows = batch.num_reqs, batch.num_tokens
        num_others, num_emitting = (num_reqs, num_reqs) if budget is None else (self._num_others, self._num_emitting)
        if not batch.has_prefill:
            # All requests had been in the step before, so that the engine was not idle between the two.
            self.costs.observe_between(num_reqs, self._between, is_drawn=self.rounds.is_drawn)
            if num_rows in self._prepared_rows and self.rounds.is_drawn:
                self.costs.observe_verification(num_rows, num_reqs, now - began)
            elif num_rows in self._prepared_rows and num_rows == num_reqs:
                self.costs.observe_plain(num_reqs, now - began)
            self._prepared_rows.add(num_rows)
        # A step with prompts says what came of its nodes, too. But its duration corrects no costs: a prompt's rows are
        # not sampled from, and attend to more than nodes do.
        plain, taken = self._seconds(batch, num_others)
        tokens = float(num_sampled.sum())
        if self.rounds.is_drawn:
            taken += self.costs.drafting(num_reqs, self.beam_steps)
            if num_emitting > 0:
                self.rounds.judge(num_reqs, tokens, taken, num_emitting, plain)
        if num_rows > num_others and budget is not None:
            self.outlook.grade((budget.tokens - num_emitting) / self.outlook.trust, tokens - num_emitting)
        if batch.has_prefill:
            return
        self.records.add(
            Record(
                steps=1,
                skipped_rounds=int(self.rounds.is_paused),
                nodes=num_rows - num_reqs,
                expected=0.0 if budget is None else budget.tokens - num_reqs,
                accepted=tokens - num_reqs,
                seconds=taken,
                plain_seconds=plain * tokens / num_reqs,
                passed_seconds=passed,
            )
        )

    def _seconds(self, batch: InputBatch, num_others: int) -> tuple[float, float]:
        """What a step of this size takes without any drafting, and what the step that has ended has taken."""
        num_reqs, costs = batch.num_reqs, self.costs
        between = costs.between(num_reqs, is_drawn=False)
        if not self.rounds.is_drawn and not batch.has_prefill:
            plain = costs.plain(num_reqs) + between
            return plain, plain
        plain = costs.plain(num_reqs)
        if batch.has_prefill:
            plain = float(costs.verification(num_others, batch.num_tokens, num_reqs)[0])
        taken = costs.after_round(batch.num_tokens, num_reqs) if self.rounds.is_drawn else plain
        return plain + between, taken + costs.between(num_reqs, is_drawn=self.rounds.is_drawn)

    def take_counts(self) -> AdaptiveCounts:
        """What has been counted since the last call."""
        return self.records.take_counts()

    def begins_round(self, is_wanted: bool) -> bool:
        """Whether a round is drawn after this step; it is not where no request of the batch wants one."""
        return self.rounds.choose(self._num_reqs, is_wanted=is_wanted)

    @property
    def beam_steps(self) -> int:
        """Of the round that is drawn next, or was last."""
        return self.rounds.beam_steps

    @property
    def step_size(self) -> None:
        """Steps are timed here."""

    def end_step(self) -> None:
        """The step has ended, with its round if there is one."""

    def end_drafting(self, num_reqs: int) -> None:
        """A round has ended."""
        self._ended = time.perf_counter()
        self.costs.observe_drafting(num_reqs, self._ended - self._verified, self.beam_steps)
