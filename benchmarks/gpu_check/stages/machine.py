# SPDX-License-Identifier: Apache-2.0
"""The GPU, its driver, and the memory bandwidth that byte floors are computed with."""

import statistics
import subprocess
import time

import torch

from benchmarks.gpu_check.stages import Call, Outcome

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
ROUNDS = 20


def run(call: Call) -> Outcome:
    """Measure the bytes that a copy reads and writes per second, the median of several copies."""
    device = call.device
    size = COPY_BYTES[device]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(ROUNDS):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    bandwidth = 2 * size / statistics.median(seconds)
    figures = {"bandwidth": bandwidth, "torch": torch.__version__, **_gpu(device)}
    return Outcome(True, f"{figures.get('name', device)}, a copy moves {bandwidth / 1e9:,.0f} GB/s", figures)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _gpu(device: str) -> dict[str, str | int | list[int]]:
    if device != "cuda":
        return {}
    found = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "name": found.name,
        "memory": found.total_memory,
        "capability": [found.major, found.minor],
        "driver": driver,
        "cuda": str(torch.version.cuda),
    }
