# SPDX-License-Identifier: Apache-2.0
"""The machine that a measurement runs on: its name, and peak memory."""

import ctypes
import gc
import os
import platform
from pathlib import Path

import torch


def hardware(device: str) -> tuple[str, str]:
    """A short name, for file names, and a long one."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        return name.replace(" ", "-").lower(), name
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()}-core-cpu", f"{os.cpu_count()} cores of {model}"


class PeakMemory:
    """Peak memory since construction, minus the memory in use at construction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the resident memory
        self.before = self._status("VmRSS")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def added(self) -> int:
        held = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else self._status("VmHWM")
        return held - self.before

    def _status(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
