# SPDX-License-Identifier: Apache-2.0
"""Tokens behind a stop string are not accepted tokens: vLLM finds it in the front end, after the engine has counted."""

from collections.abc import Callable
from typing import Any

from redrafter_vllm.integration.metrics import StepCounts, count_fewer


def note_stop_strings(original: Callable) -> Callable:
    """Wrap `OutputProcessor.process_outputs`, which cuts the tokens behind a stop string."""

    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        num_sent = [len(output.new_token_ids) for output in engine_core_outputs]
        processed = original(self, engine_core_outputs, *args, **kwargs)
        num_received = [len(output.new_token_ids) for output in engine_core_outputs]
        if num_received != num_sent:
            cut = [pair for pair in zip(num_sent, num_received, strict=True) if pair[0] != pair[1]]
            # The outputs of one step may come in several chunks.
            self.redrafter_cut = [*getattr(self, "redrafter_cut", ()), *cut]
        return processed

    return process_outputs


def count_stop_strings(original: Callable) -> Callable:
    """Wrap `OutputProcessor.update_scheduler_stats`, called between a step's outputs and recording its statistics."""

    def update_scheduler_stats(self: Any, scheduler_stats: Any) -> None:
        cut, self.redrafter_cut = getattr(self, "redrafter_cut", ()), []
        stats = getattr(scheduler_stats, "spec_decoding_stats", None)
        if stats is not None and StepCounts.are_in(stats):
            for num_sent, num_received in cut:
                count_fewer(stats, num_sent, num_received)
        original(self, scheduler_stats)

    return update_scheduler_stats
