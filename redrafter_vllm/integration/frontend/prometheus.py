# SPDX-License-Identifier: Apache-2.0
"""The metrics `vllm:redrafter_*`, beside vLLM's own metrics of speculative decoding.

Counters only: they add up over the processes of a server, Ray supports them, and every average is a quotient of two.
Times are whole microseconds because `LLM.get_metrics()` cuts counters to integers.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.metrics.utils import create_metric_per_engine
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from redrafter_vllm.integration.method import is_ours
from redrafter_vllm.integration.metrics import StepCounts

DEPTH_LABEL = "depth"
ACCEPTED = "vllm:redrafter_accepted"
# Description of each counter, by name.
COUNTERS = {
    "vllm:redrafter_verifications": "Verification steps of single requests that had drafts.",
    "vllm:redrafter_tokens": "Tokens received of verification steps: the accepted drafts and the target's own token.",
    "vllm:redrafter_nodes": "Nodes of the draft trees that were verified.",
    "vllm:redrafter_node_slots": "Rows that the target's step had for nodes of these trees.",
    "vllm:redrafter_draft_microseconds": "Time that the device spent on drafting.",
    "vllm:redrafter_step_microseconds": "Time that the device spent on steps, from the target's inputs to the drafts.",
    "vllm:redrafter_skipped_rounds": "Decoding steps without a drafting round before them, as drafting did not pay.",
    "vllm:redrafter_expected_thousandths": "Accepted drafts that adaptive trees expected, times 1000.",
    "vllm:redrafter_plain_microseconds": "Estimated time for the tokens of adaptive steps without drafts.",
    "vllm:redrafter_adaptive_microseconds": "Estimated time of these steps with their drafts, drafting included.",
    "vllm:redrafter_passed_microseconds": "Time that passed by the clock while these steps ran; on a CPU.",
}
ACCEPTED_HELP = "Verification steps that accepted a draft of this depth."


class RedrafterProm:
    """The counters of a front-end process, one child for every engine."""

    def __init__(
        self,
        counter_cls: Any,
        max_depth: int,
        labelnames: Sequence[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        self._counters = {
            name: create_metric_per_engine(
                counter_cls(name=name, documentation=text, labelnames=list(labelnames)), per_engine_labelvalues
            )
            for name, text in COUNTERS.items()
        }
        accepted = counter_cls(name=ACCEPTED, documentation=ACCEPTED_HELP, labelnames=[*labelnames, DEPTH_LABEL])
        self._accepted = {
            engine: [accepted.labels(*values, str(depth)) for depth in range(1, max_depth + 1)]
            for engine, values in per_engine_labelvalues.items()
        }

    def observe(self, stats: SpecDecodingStats, engine: int) -> None:
        """Add one step of an engine."""
        counted = (
            stats.num_drafts,
            stats.num_drafts + stats.num_accepted_tokens,
            stats.num_draft_tokens,
            *StepCounts.of(stats),
        )
        for counter, value in zip(self._counters.values(), counted, strict=True):
            counter[engine].inc(value)
        for counter, value in zip(self._accepted[engine], stats.num_accepted_tokens_per_pos, strict=False):
            counter.inc(value)


def create_counters(original: Callable) -> Callable:
    """Wrap `SpecDecodingProm.__init__`."""

    def __init__(  # noqa: N807
        self: Any,
        speculative_config: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
        is_diffusion: bool = False,
    ) -> None:
        original(self, speculative_config, labelnames, per_engine_labelvalues, is_diffusion)
        if is_ours(speculative_config):
            self.redrafter = RedrafterProm(
                self._counter_cls, speculative_config.drafting.max_depth, labelnames, per_engine_labelvalues
            )

    return __init__


def log_verifications(original: Callable) -> Callable:
    """Wrap `SpecDecodingLogging.observe`, whose line divides by the number of verifications."""

    def observe(self: Any, spec_decoding_stats: Any) -> None:
        if spec_decoding_stats.num_drafts or not StepCounts.are_in(spec_decoding_stats):
            original(self, spec_decoding_stats)

    return observe


def observe_counters(original: Callable) -> Callable:
    """Wrap `SpecDecodingProm.observe`."""

    def observe(self: Any, spec_decoding_stats: Any, engine_idx: int = 0) -> None:
        original(self, spec_decoding_stats, engine_idx)
        if hasattr(self, "redrafter"):
            self.redrafter.observe(spec_decoding_stats, engine_idx)

    return observe
