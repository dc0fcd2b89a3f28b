# SPDX-License-Identifier: Apache-2.0
"""The machine that a measurement runs on."""

import os
import platform
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
