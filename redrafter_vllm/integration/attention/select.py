# SPDX-License-Identifier: Apache-2.0
"""Which of our attention backends serves a target: the first one for the device that supports it."""

import os
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from redrafter_vllm.integration.target_support import UnsupportedTargetError

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

_PACKAGE = "redrafter_vllm.integration.attention."
CPU = _PACKAGE + "cpu.CpuTreeBackend"
FLASH = _PACKAGE + "flash.FlashTreeBackend"
TRITON = _PACKAGE + "triton.TritonTreeBackend"

# Debugging: `triton` runs the kernels of a GPU on a CPU, interpreted.
CPU_SWITCH = "REDRAFTER_CPU_ATTENTION"
_ON_CPU = {"native": CPU, "triton": TRITON}


def is_ours(path: str) -> bool:
    """Whether this is the path of one of our backends."""
    return path in (CPU, FLASH, TRITON)


def register_tree_attention() -> None:
    """Put a backend of ours into vLLM's slot for custom backends in this process; `select` chooses the final one.

    Raises:
        UnsupportedTargetError: Another plugin has taken the slot, or there is no backend for this device.
    """
    custom = AttentionBackendEnum.CUSTOM
    if custom.is_overridden() and not is_ours(custom.get_path()):
        raise UnsupportedTargetError(
            f"ReDrafter's trees need vLLM's CUSTOM attention backend, which {custom.get_path()} has taken; unload that "
            "plugin or draft chains (beam_width=1)."
        )
    register_backend(custom, candidates()[0])


def candidates() -> list[str]:
    """Paths of the backends for this process's device, the preferred one first.

    Raises:
        UnsupportedTargetError: There are none for this device, or the switch for CPUs has an unknown value.
    """
    if current_platform.is_cuda():
        return [FLASH, TRITON]
    if current_platform.is_cpu():
        wanted = os.environ.get(CPU_SWITCH, "native")
        if wanted not in _ON_CPU:
            raise UnsupportedTargetError(f"{CPU_SWITCH} is {wanted!r}; it can be {' or '.join(_ON_CPU)}.")
        return [_ON_CPU[wanted]]
    raise UnsupportedTargetError(
        f"ReDrafter has no tree attention for {current_platform.device_name} devices; draft chains (beam_width=1)."
    )


def select(config: Any) -> str:
    """Path of the backend for a layer's configuration (vLLM's AttentionSelectorConfig).

    Raises:
        UnsupportedTargetError: None of ours supports it; the message has vLLM's reasons for each.
    """
    reasons: dict[str, str] = {}
    capability = current_platform.get_device_capability()
    for path in candidates():
        try:
            backend = resolve_obj_by_qualname(path)
            found = backend.validate_configuration(device_capability=capability, **config._asdict())
        except (ImportError, OSError) as error:
            found = [f"{type(error).__name__}: {error}"]
        if not found:
            logger.info_once("Tree attention by %s.%s", path, f" Not by {_listed(reasons)}." if reasons else "")
            return path
        reasons[path.rsplit(".", 1)[1]] = ", ".join(found)
    raise UnsupportedTargetError(
        f"ReDrafter's tree attention cannot serve this model ({_listed(reasons)}); draft chains (beam_width=1)."
    )


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())
