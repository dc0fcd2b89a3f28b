# SPDX-License-Identifier: Apache-2.0
"""Durations of steps and drafting rounds, measured on the machine before an engine serves."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

REPEATS = 5  # of each measurement, of which the shortest counts
LONG_RUN = 0.5  # seconds; larger steps than one that takes this long are not measured
MAX_MEASURED = 128  # rows or requests


def measure_costs(runner: Any, speculator: RedrafterSpeculator) -> MeasuredCosts:
    """The target's step and a drafting round of several sizes, run on invented inputs.

    A real step has further work for each request (its attention) and for each row (sampling).
    """
    max_rows = min(runner.max_num_tokens, MAX_MEASURED)

    def run_target(rows: int) -> None:
        hidden, _ = runner._dummy_run(rows, skip_attn=True, is_profile=True)
        runner._dummy_sampler_run(hidden[: min(rows, runner.max_num_reqs)])

    with speculator.without_drafting():
        verification = _by_size(run_target, max_rows)
        few = min(8, max_rows, runner.max_num_reqs)
        with_attention = _shortest(lambda: runner._dummy_run(few))
        without = _shortest(lambda: runner._dummy_run(few, skip_attn=True, is_profile=True))
    max_requests, beam_length = min(runner.max_num_reqs, MAX_MEASURED), speculator.drafting.beam_length
    drafting, first_beam_step, copies_alone = (
        _by_size(partial(speculator.run_idle_round, beam_steps=steps), max_requests)
        if steps or speculator.drafting.copies_text
        else []
        for steps in (beam_length, 1, 0)
    )
    per_request = max(with_attention - without, 0.0) / few
    return MeasuredCosts(verification, per_request, drafting, first_beam_step, copies_alone, beam_length)


def time_recorded_rounds(speculator: RedrafterSpeculator, beam_steps: int) -> list[tuple[int, float]]:
    """(requests, seconds) of every recorded round of so many beam steps, sizes ascending; waits for the device."""
    graphs, clock = speculator.graphs, speculator.timer.clock
    assert graphs is not None
    points = []
    for desc in sorted(graphs.graphs, key=lambda desc: desc.num_tokens):
        speculator.buffers.idle(speculator.rows.padding_row)
        marks = [clock.mark()]
        for _ in range(REPEATS):
            graphs.replay(desc, beam_steps)
            marks.append(clock.mark())
        while (spans := clock.spans(marks)) is None:
            time.sleep(1e-4)
        points.append((desc.num_tokens, min(spans)))
    return points


def _by_size(run: Callable[[int], None], limit: int) -> list[tuple[int, float]]:
    """Seconds of `run` for sizes 1, 2, 4 … and `limit`."""
    points: list[tuple[int, float]] = []
    size = 1
    while not points or (points[-1][0] < limit and points[-1][1] < LONG_RUN):
        points.append((size, _shortest(partial(run, size))))
        size = min(2 * size, limit)
    return points


def _shortest(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)
