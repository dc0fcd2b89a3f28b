# SPDX-License-Identifier: Apache-2.0
"""Peak memory of this process, or of a GPU."""

import ctypes
import gc
from pathlib import Path

import torch


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
