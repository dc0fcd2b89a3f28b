# SPDX-License-Identifier: Apache-2.0
"""Our counts between the engine's process and the front end, and the counters of several engines."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.spec_decode.metrics import SpecDecodingLogging, SpecDecodingStats

from redrafter_vllm.integration.frontend.prometheus import RedrafterProm, log_verifications
from redrafter_vllm.integration.metrics import StepCounts


def stats() -> SpecDecodingStats:
    """One verification of three nodes in four slots that accepted two of them."""
    made = SpecDecodingStats.new(4)
    StepCounts(4, 70, 900).put_into(made)
    made.observe_draft(num_draft_tokens=3, num_accepted_tokens=2)
    return made


def sent(stats: SpecDecodingStats) -> SpecDecodingStats:
    """The statistics that the front end receives, encoded and decoded by vLLM."""
    message = EngineCoreOutputs(scheduler_stats=SchedulerStats(spec_decoding_stats=stats))
    received = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(message))
    return received.scheduler_stats.spec_decoding_stats


def test_counts_arrive() -> None:
    received = sent(stats())
    assert StepCounts.of(received) == StepCounts(num_slots=4, draft_us=70, step_us=900)
    assert received.num_draft_tokens_per_pos[:4] == [1, 1, 1, 0]
    StepCounts(9, 8, 7, 6, 5, 4, 3, 2).put_into(received)
    assert StepCounts.of(received) == (9, 8, 7, 6, 5, 4, 3, 2) and len(received.num_draft_tokens_per_pos) == 4 + 8
    assert StepCounts.of(SpecDecodingStats.new(4)) == (0, 0, 0, 0, 0, 0, 0, 0)


def test_vllms_log_line_does_not_change() -> None:
    without = SpecDecodingStats.new(4)
    without.observe_draft(num_draft_tokens=3, num_accepted_tokens=2)
    lines: list[tuple[object, ...]] = []
    for observed in (without, stats()):
        logging = SpecDecodingLogging()
        logging.observe(observed)
        # Throughputs depend on the time that has passed.
        logging.log(log_fn=lambda text, *values: lines.append((text, values[0], *values[3:])))
    assert lines[0] == lines[1]


def test_steps_without_verifications_are_not_logged() -> None:
    """vLLM's line divides by their number."""
    logging, lines = SpecDecodingLogging(), list[str]()
    observe = log_verifications(SpecDecodingLogging.observe)
    times = SpecDecodingStats.new(4)
    StepCounts(0, 0, 900).put_into(times)
    observe(logging, times)
    logging.log(log_fn=lambda text, *values: lines.append(text % values))
    assert lines == []
    observe(logging, stats())
    observe(logging, times)
    logging.log(log_fn=lambda text, *values: lines.append(text % values))
    assert len(lines) == 1 and "Mean acceptance length: 3.00" in lines[0]


def test_each_engine_has_its_own_labels() -> None:
    registry = CollectorRegistry()
    counter = partial(Counter, registry=registry)
    counters = RedrafterProm(counter, 3, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]})
    counters.observe(stats(), engine=1)
    counters.observe(stats(), engine=1)

    def value(name: str, engine: str, **labels: str) -> float | None:
        return registry.get_sample_value(
            f"vllm:redrafter_{name}_total", {"model_name": "m", "engine": engine, **labels}
        )

    names = ("verifications", "tokens", "nodes", "node_slots", "draft_microseconds", "step_microseconds")
    assert [value(name, "1") for name in names] == [2, 6, 6, 8, 140, 1800]
    assert [value(name, "0") for name in names] == [0] * 6
    assert [value("accepted", "1", depth=depth) for depth in "1234"] == [2, 2, 0, None]
