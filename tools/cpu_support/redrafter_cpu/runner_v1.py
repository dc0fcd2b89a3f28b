# SPDX-License-Identifier: Apache-2.0
"""Gives vLLM's runner V1 its native CPU kernels back.

Where vLLM finds Triton, it assumes that Triton compiles and does not use its own C++ kernels, also on runner V1, which
would then be interpreted. With this, V1 runs as it does without this package.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

_PARAMETERS = ["self", "vllm_config", "device"]


def with_native_kernels(runner: Any) -> Any:
    """The runner's class, changed to register vLLM's native kernels when a runner is made."""
    original = runner.__init__
    parameters = list(inspect.signature(original).parameters)
    if parameters != _PARAMETERS:
        raise TypeError(f"the parameters of its __init__ are {parameters}, expected {_PARAMETERS}")

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        register_native_kernels()
        original(self, *args, **kwargs)

    runner.__init__ = __init__
    return runner


def register_native_kernels() -> None:
    """Have vLLM register them as it does without Triton."""
    from vllm import triton_utils
    from vllm.platforms import current_platform

    seen = triton_utils.HAS_TRITON
    triton_utils.HAS_TRITON = False
    try:
        current_platform.register_triton_kernel_overrides()
    finally:
        triton_utils.HAS_TRITON = seen
