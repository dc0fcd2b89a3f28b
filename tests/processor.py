# SPDX-License-Identifier: Apache-2.0
"""What a test run says of the processor that it runs on: vLLM chooses kernels by it, so machines differ."""

import os
import platform
from pathlib import Path

CPUINFO, MEMORY_LIMIT = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/memory.max")

# By what vLLM, torch and oneDNN choose, on x86 and on ARM.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
FEATURES += ("amx_fp16", "asimd", "bf16", "i8mm", "sve")


def header() -> list[str]:
    """Lines for the head of a test run."""
    cpuinfo = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    lines = [f"processor: {describe(cpuinfo)}; {len(os.sched_getaffinity(0))} cores, {memory() / 2**30:.0f} GiB"]
    import torch

    if torch.version.cuda is None:
        kernels = "SGLang's kernels for AMX" if torch.cpu._is_amx_tile_supported() else "oneDNN, for want of AMX"
        lines.append(f"vLLM's small and INT8 linear layers: {kernels}; tests that depend on it try both")
    return lines


def describe(cpuinfo: str) -> str:
    """Model and features, from the text of /proc/cpuinfo."""
    fields = dict(line.partition(":")[::2] for line in reversed(cpuinfo.splitlines()))
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    own = (fields.get("flags") or fields.get("Features") or "").split()
    model = fields.get("model name") or f"{platform.machine()}, model not named"
    return f"{model} ({' '.join(name for name in FEATURES if name in own) or 'no known features'})"


def memory() -> int:
    """Bytes that this process may have: the machine's, or its container's."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return whole if limit == "max" else min(whole, int(limit))
