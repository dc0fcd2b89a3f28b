# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampler on every row of a verification step, then the walk."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.async_utils import async_copy_to_np
from vllm.v1.worker.gpu.input_batch import InputBatch, get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from redrafter_vllm.drafting.buffers import BatchDrafts
from redrafter_vllm.drafting.verify import RowLayout, emitting_rows, invalidate, part_of, walk_drafts
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.integration.worker.history import follow_paths
from redrafter_vllm.integration.worker.report import VerifiedOutput
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from redrafter_vllm.ops.path_history import Paths
from redrafter_vllm.ops.tree_verify import Walk


class TreeSampler:
    """Replaces vLLM's rejection sampler.

    Every row is sampled exactly as plain decoding would sample there: the same processing, and noise drawn from the
    request's seed and the row's position in the text. The walk then keeps the tokens that plain decoding would have
    reached. (Leviathan-style acceptance `min(1, p/q)` is not used: beams are not samples of q.)
    """

    enable_adaptive_verification = False  # read by vLLM's warm-up

    def __init__(self, sampler: Any, speculator: RedrafterSpeculator) -> None:
        for option, is_on in (
            ("enable_trace_replay", sampler.trace_replay_state is not None),
            ("return_sampling_mask", sampler.return_sampling_mask),
        ):
            if is_on:
                raise UnsupportedTargetError(
                    f"ReDrafter does not record or replay samples: switch off {option} or ReDrafter."
                )
        self.sampler = sampler
        self.speculator = speculator
        self.max_depth = speculator.drafting.max_depth
        self.scope = follow_paths(sampler, speculator.rows)

    def __call__(
        self,
        logits: Tensor,  # [rows, V]
        input_batch: InputBatch,
        draft_logits: Tensor | None = None,
        invalid_drafts: Tensor | None = None,  # [rows] bool
    ) -> SamplerOutput:
        step = self.speculator.step
        assert step is not None and step.batch is input_batch
        assert step.layout is not None and step.drafts is not None
        num_nans = get_num_nans(logits) if self.sampler.compute_nans else None
        drafts = step.drafts
        if invalid_drafts is not None:
            drafts = invalidate(drafts, step.layout, invalid_drafts)
        step.verified = drafts
        step.walk, logprobs = self._verify(logits, input_batch, drafts, step.layout)
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            step.walk.num_emitted.clone(),
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.sampler.req_states.prefill_len.gpu,
        )
        return VerifiedOutput(
            sampled_token_ids=step.walk.emitted,
            logprobs_tensors=logprobs,
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
            num_nodes=async_copy_to_np(
                torch.stack((step.layout.num_drafts, step.drafts.valid.sum(1), drafts.valid.sum(1)))
            ),
        )

    def _verify(
        self, logits: Tensor, batch: InputBatch, drafts: BatchDrafts, layout: RowLayout
    ) -> tuple[Walk, LogprobsTensors | None]:
        """The walk of every request, and log-probabilities if any request wants them, in chunks of whole requests."""
        paths = Paths(drafts.tokens, drafts.parents, layout.req_of_row, layout.local_of_row, self.max_depth)
        dims = self.sampler.get_logprobs_dims(batch.idx_mapping_np)
        scores_processed = self.sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
        walks, logprobs = [], []
        # Chunks bound the float copies of the logits. Where trees are trimmed on the device, the host knows only the
        # sum of their rows, which the budget keeps to one chunk.
        max_rows = get_max_chunk_logits(logits.shape[1])
        assert not self.speculator.is_trimmed_on_device or logits.shape[0] <= max_rows
        for reqs, rows in _request_chunks(batch.cu_num_logits_np, max_rows):
            sampled, processed = self._sample(logits, batch, reqs, rows, paths, dims is not None)
            own = part_of(layout, reqs, rows)
            walks.append(walk_drafts(sampled, own, BatchDrafts(*(x[reqs] for x in drafts)), self.max_depth))
            if dims is not None:
                scored = processed if scores_processed else logits[rows]
                logprobs.append(self._logprobs(scored, sampled, emitting_rows(walks[-1], own), batch, rows, dims))
            del processed
        walk = walks[0] if len(walks) == 1 else Walk(*map(torch.cat, zip(*walks, strict=True)))
        return walk, self._joined(logprobs, batch) if logprobs else None

    def _joined(self, chunks: list[LogprobsTensors], batch: InputBatch) -> LogprobsTensors:
        if self.speculator.is_trimmed_on_device:
            return chunks[0]._replace(cu_num_generated_tokens_tensor=batch.cu_num_logits.clone())
        return LogprobsTensors.cat(chunks, batch.cu_num_logits_np.tolist())

    def _sample(
        self, logits: Tensor, batch: InputBatch, reqs: slice, rows: slice, paths: Paths, return_logprobs: bool
    ) -> tuple[Tensor, Tensor]:
        """The target's token at each of `rows`, those of the requests `reqs`, and the processed logits."""
        with self.scope.use(paths.rows(rows)):
            sampled, processed = self.sampler.sample(
                logits[rows],
                batch.expanded_idx_mapping[rows],
                batch.idx_mapping[reqs],
                batch.idx_mapping_np[reqs],
                batch.positions[batch.logits_indices[rows]],
                batch.input_ids[batch.logits_indices[rows]],
                batch.expanded_local_pos[rows],
                batch.seq_lens_cpu_upper_bound.numpy()[reqs],
                return_logprobs=return_logprobs,
            )
        return sampled, processed

    def _logprobs(
        self,
        logits: Tensor,  # [rows, V]
        sampled: Tensor,  # [rows]
        emitting: Tensor,  # [rows]
        batch: InputBatch,
        rows: slice,
        dims: tuple[int, int],
    ) -> LogprobsTensors:
        """Log-probabilities of the path's rows, moved to where vLLM expects them: the i-th emitted token in row i."""
        num_logprobs, max_per_req_token_ids = dims
        return compute_topk_scores(
            logits[emitting],
            num_logprobs,
            sampled[emitting],
            logprob_token_ids_state=self.sampler.logprob_token_ids_state,
            expanded_idx_mapping=batch.expanded_idx_mapping[rows],
            max_per_req_token_ids=max_per_req_token_ids,
            logits_mode=self.sampler.logprobs_mode in ("raw_logits", "processed_logits"),
        )


def _request_chunks(cu_num_logits: np.ndarray, max_rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of requests, and of their rows, that hold at most `max_rows` rows or a single request."""
    num_reqs = len(cu_num_logits) - 1
    start = 0
    while start < num_reqs:
        end = start + 1
        while end < num_reqs and cu_num_logits[end + 1] - cu_num_logits[start] <= max_rows:
            end += 1
        yield slice(start, end), slice(int(cu_num_logits[start]), int(cu_num_logits[end]))
        start = end
