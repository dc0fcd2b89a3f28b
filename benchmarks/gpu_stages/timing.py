# SPDX-License-Identifier: Apache-2.0
"""How long a call takes on the device, and the bandwidth that its byte floor is reckoned with."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_stages import machine


def seconds(call: Callable[[], object], device: str) -> float:
    """Median of many calls. On a GPU from a CUDA graph, so that the host's part does not count."""
    if device == "cuda":
        from triton.testing import do_bench_cudagraph

        return 1e-3 * float(do_bench_cudagraph(call, rep=50, return_mode="median"))
    call()
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def bandwidth(device: str, scratch: Path) -> float:
    """Bytes per second, as the first stage has measured it, or else measured now."""
    stored = scratch.parent / "machine.outcome"
    figures = json.loads(stored.read_text())["figures"] if stored.is_file() else machine.run(device, scratch).figures
    return float(figures["bandwidth"])
