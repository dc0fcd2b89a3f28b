# SPDX-License-Identifier: Apache-2.0
"""Whether an op runs its Triton kernel or its plain-torch reference: one place for all ops.

`REDRAFTER_KERNELS=1` is for debugging: it takes the kernels on CPUs too, where Triton has to interpret them (the CPU
set-up sees to that). Slow, and read once, when this module is imported.
"""

import os

from torch import Tensor

_ALWAYS = os.environ.get("REDRAFTER_KERNELS") == "1"


def use_kernel(tensor: Tensor) -> bool:
    """Whether to launch a kernel on `tensor`: on CUDA devices, and everywhere with `REDRAFTER_KERNELS=1`."""
    return tensor.is_cuda or _ALWAYS
