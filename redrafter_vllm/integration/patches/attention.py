# SPDX-License-Identifier: Apache-2.0
"""The name by which vLLM chooses attention backends."""

from collections.abc import Callable
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from redrafter_vllm.integration.attention.select import is_ours, select
from redrafter_vllm.integration.patches.rebind import rebind, rebind_listed
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.vllm_interface.names import rebound


def install() -> None:
    """CUSTOM names one class, but which of ours can serve depends on device, dtype and head size.

    Also, the CPU platform answers CPU_ATTN whatever is selected. Can go when a custom backend may choose, and CPUs
    accept one.
    """
    name = "get_attn_backend_cls"
    if current_platform.is_cpu():
        rebind_listed(f"vllm.platforms.cpu:CpuPlatform.{name}", _attn_backend)
    else:
        parameters = rebound(f"vllm.platforms.cuda:CudaPlatformBase.{name}").parameters
        rebind(_owner(type(current_platform), name), name, _attn_backend, parameters)


def _owner(cls: type, name: str) -> type:
    """The class, of `cls` and its bases, that defines `name`."""
    return next((base for base in cls.__mro__ if name in vars(base)), cls)


def _attn_backend(original: Callable) -> Callable:
    @report_start_errors
    def get_attn_backend_cls(
        cls: Any, selected_backend: Any, attn_selector_config: Any, *args: Any, **kwargs: Any
    ) -> str:
        custom = AttentionBackendEnum.CUSTOM
        if selected_backend == custom and custom.is_overridden() and is_ours(custom.get_path()):
            return select(attn_selector_config)
        return original(cls, selected_backend, attn_selector_config, *args, **kwargs)

    return get_attn_backend_cls
