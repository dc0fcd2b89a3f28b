# SPDX-License-Identifier: Apache-2.0
"""Kinds of engines, and the environments that they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineKind:
    """One of the engines compared."""

    name: str
    speculative: dict[str, Any] | None
    env: Mapping[str, str]


def as_users_run_it(has_gpu: bool) -> EngineKind:
    """vLLM without this project's packages: on a machine without a GPU, runner V1 with its native kernels."""
    env = {"VLLM_PLUGINS": ""}
    if not has_gpu:
        env |= {"VLLM_USE_V2_MODEL_RUNNER": "0", "TRITON_INTERPRET": "0"}
    return EngineKind("vLLM as installed", None, env)


def plain() -> EngineKind:
    """vLLM without drafts on the runner that ReDrafter uses, whose tokens ReDrafter's must equal."""
    return EngineKind("vLLM, runner V2", None, {})


def with_redrafter(speculative: dict[str, Any]) -> EngineKind:
    """vLLM with ReDrafter; `speculative` is vLLM's speculative config."""
    return EngineKind("ReDrafter", speculative, {})
