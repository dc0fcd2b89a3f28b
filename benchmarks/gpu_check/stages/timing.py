# SPDX-License-Identifier: Apache-2.0
"""Times of calls on the device, and the bandwidth that byte floors are computed with."""

import json
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.gpu_check.stages import Call, machine, outcome_file


def seconds(calls: Sequence[Callable[[], object]], device: str) -> float:
    """Seconds of one call, when all calls are made in turn; the median of many rounds.

    On a GPU the calls run from a CUDA graph, so that time on the host does not count. Caches are not flushed: data that
    should come from memory must, over all calls together, be larger than any cache.
    """

    def round_of_calls() -> None:
        for call in calls:
            call()

    if device == "cuda":
        from triton.testing import do_bench_cudagraph

        return 1e-3 * float(do_bench_cudagraph(round_of_calls, rep=50, return_mode="median")) / len(calls)
    round_of_calls()
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        round_of_calls()
        taken.append((time.perf_counter() - started) / len(calls))
    return statistics.median(taken)


def bandwidth(call: Call) -> float:
    """Bytes per second: the result of the stage `machine`, or a measurement if there is none."""
    stored = outcome_file(call.scratch.with_name("machine"))
    figures = json.loads(stored.read_text())["figures"] if stored.is_file() else machine.run(call).figures
    return float(figures["bandwidth"])
