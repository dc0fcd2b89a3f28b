# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of prompts, without placeholder drafts."""

from typing import Any

import numpy as np
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker


class DraftlessPromptLogprobs(PromptLogprobsWorker):
    """vLLM's `PromptLogprobsWorker`, for steps with placeholder drafts too.

    A waiting request of one token is padded with placeholders, and vLLM scores them as if they were its prompt.
    """

    def compute_prompt_logprobs(
        self, logits_fn: Any, hidden_states: Any, input_batch: Any, *args: Any
    ) -> dict[str, Any]:
        found = super().compute_prompt_logprobs(logits_fn, hidden_states, input_batch, *args)
        if not found:
            return found
        num_drafts = np.diff(input_batch.cu_num_logits_np) - 1
        for req_id, count in zip(input_batch.req_ids, num_drafts.tolist(), strict=True):
            if count and req_id in found:
                scores = found.pop(req_id)
                if scores.logprobs.shape[0] > count:
                    found[req_id] = type(scores)(*(rows[:-count] for rows in scores[:3]))
        return found
