# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin of the CPU support: does nothing unless kernels are interpreted on the CPU platform."""

from __future__ import annotations


def register() -> None:
    """Entry point of `vllm.general_plugins`, called in every process; idempotent."""
    from redrafter_cpu.triton_backend import DECISION

    if not DECISION.active:
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from redrafter_cpu.rebind import install, vllm_version
    from redrafter_cpu.table import rebindings

    install(rebindings(vllm_version()))
