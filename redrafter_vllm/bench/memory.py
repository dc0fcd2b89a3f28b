# SPDX-License-Identifier: Apache-2.0
"""Memory: what engines will need, what is free, and what they took."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GIB = 1 << 30
MIB = 1 << 20
PAGE = 128  # tokens; vLLM's largest page of a cache on these devices
# Of an engine beside weights and cache: libraries, activations, compiled code.
OVERHEAD = {"offline": 3 * GIB // 2, "serve": 3 * GIB}
TOGETHER = 0.9  # of the free memory, which engines that run side by side may need


class RoomError(ValueError):
    """There is too little memory, or it cannot be estimated; the message says what to do."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi describes it, bytes."""

    name: str
    used: int
    free: int


def gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; empty where nvidia-smi is missing or finds none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = [] if visible is None else ["-i", visible]
    query = ["nvidia-smi", "--query-gpu=name,memory.used,memory.free", "--format=csv,noheader,nounits", *chosen]
    if visible == "":
        return []
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in answer.splitlines() if line.count(",") >= 2]
    return [Gpu(name.strip(), int(used) * MIB, int(free) * MIB) for name, used, free in rows]


def device_memory_used() -> int:
    """Bytes in use on all visible GPUs, by whatever process."""
    return sum(gpu.used for gpu in gpus())


def peak_resident(pid: int) -> int:
    """Bytes of host memory of a process and its children, each at its own peak; 0 once they have ended.

    Pages that processes share count once for each.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_peak(member.pid) for member in family)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) << 10 if found else 0


def cache_bytes(config: Any, requests: int, tokens: int, itemsize: int) -> int:
    """A key-value cache for `requests` of `tokens` each to run at once to their end, and 8 pages more.

    Args:
        config: transformers' configuration of the text model.
        itemsize: Bytes of a number.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * heads * head_dim
    return (requests * -(-tokens // PAGE) + 8) * PAGE * numbers * itemsize


def weight_bytes(folder: Path) -> int:
    """Of the weights stored in a folder.

    Raises:
        RoomError: There are none.
    """
    for pattern in ("*.safetensors", "*.bin"):
        if files := list(folder.glob(pattern)):
            return sum(file.stat().st_size for file in files)
    raise RoomError(f"{folder} holds no weights (*.safetensors or *.bin)")


def fits_together(engines: int, each: int, free: int) -> bool:
    """Whether so many engines can run side by side.

    Raises:
        RoomError: Not even one has room.
    """
    if each > free:
        raise RoomError(
            f"an engine needs about {each / GIB:.1f} GiB and {free / GIB:.1f} GiB are free: close other programs, or "
            "give a smaller --concurrency, --prompt-tokens or --max-tokens"
        )
    return engines * each <= TOGETHER * free
