# SPDX-License-Identifier: Apache-2.0
"""Where a quantised drafter can be served, checked before anything loads."""

import torch
from vllm.platforms import current_platform

from redrafter_vllm.config import OptionError

_MARLIN_CAPABILITY = 75
_MARLIN_DTYPES = (torch.bfloat16, torch.float16)


def check_quantization(quantization: str | None, dtype: torch.dtype) -> None:
    """Check that vLLM has kernels for such weights, on this device and in this dtype.

    Raises:
        OptionError: It has none.
    """
    if quantization in (None, "none") or (quantization == "int8" and current_platform.is_cpu()):
        return
    option = f"drafter_quantization={quantization!r}"
    if not current_platform.is_cuda():
        other = "use 'int8' or leave it out" if current_platform.is_cpu() else "leave it out"
        raise OptionError(f"{option} needs an NVIDIA GPU, and this is {current_platform.device_name}; {other}.")
    if not current_platform.has_device_capability(_MARLIN_CAPABILITY):
        raise OptionError(f"{option} needs a GPU of compute capability 7.5 or higher; leave it out.")
    if dtype not in _MARLIN_DTYPES:
        raise OptionError(f"{option} needs dtype bfloat16 or float16, not {dtype}; leave it out or change --dtype.")
