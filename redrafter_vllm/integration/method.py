# SPDX-License-Identifier: Apache-2.0
"""Whether an engine uses method `redrafter`: patched functions of vLLM ask this before they do anything of ours."""

from typing import Any


def uses_redrafter(vllm_config: Any) -> bool:
    """Whether the speculative method of a `VllmConfig` is ReDrafter."""
    return is_ours(vllm_config.speculative_config)


def is_ours(speculative_config: Any) -> bool:
    """Whether a speculative configuration, or None, is of method `redrafter`."""
    return getattr(speculative_config, "method", None) == "redrafter"
