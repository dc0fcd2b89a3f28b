# SPDX-License-Identifier: Apache-2.0
"""Memory: the size of a target's weights, and the free memory of a device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

GIB = 1 << 30
# bitsandbytes: 4 bits come with a scale in float32 per block of 64 weights.
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# Folder, limit, use, and reclaimable part of the use (cached file pages); cgroup versions 2 and 1.
CGROUPS = (
    (".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def weight_bytes(model: PreTrainedModel, itemsize: int, quantization: str) -> int:
    """Bytes of the weights of `model`, which may be on the meta device, after loading.

    Args:
        itemsize: bytes of a parameter that is not quantised.
        quantization: none, 8bit or 4bit; ignored for a target that is stored quantised.
    """
    stored = stored_bits(model.config)
    share = stored / 8 if stored else QUANTIZED_BYTES.get(quantization, itemsize)
    small = {id(weight) for weight in _quantizable(model)}
    return int(sum(p.numel() * (share if id(p) in small else itemsize) for p in model.parameters()))


def stored_bits(config: Any) -> int | None:
    """Bits per weight of a target that is stored quantised, 8 if its configuration does not say; None for any other."""
    described = getattr(config, "quantization_config", None)
    if described is None:
        return None
    found = described if isinstance(described, dict) else vars(described)
    return int(found.get("bits") or (4 if found.get("load_in_4bit") or found.get("_load_in_4bit") else 8))


def readable(size: float) -> str:
    """A number of bytes with a unit, for messages."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def free_memory(device: torch.device) -> int | None:
    """Free bytes on `device`, for the CPU within this container's limit; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [free for free in (_free_in_machine(), _free_in_container()) if free is not None]
    return min(known, default=None)


def _quantizable(model: PreTrainedModel) -> Iterator[Tensor]:
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield module.weight


def _free_in_machine() -> int | None:
    try:
        entries = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _free_in_container() -> int | None:
    for folder, limit, used, reclaimable in CGROUPS:
        try:
            allowed = (CGROUP / folder / limit).read_text().strip()
            taken = int((CGROUP / folder / used).read_text())
            counts = dict(line.split() for line in (CGROUP / folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return None if allowed == "max" else max(0, int(allowed) - taken + int(counts.get(reclaimable, 0)))
    return None
