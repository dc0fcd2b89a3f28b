# SPDX-License-Identifier: Apache-2.0
"""Whether an engine uses method `redrafter`: patched functions of vLLM ask this before they do anything of ours."""

import os
from typing import Any

# By whose kernels a CPU multiplies a target's bfloat16 layers. To find out what packed weights gain, or whether they
# are the cause of something, `vllm` leaves all to vLLM.
PRODUCTS_SWITCH = "REDRAFTER_CPU_PRODUCTS"


def uses_redrafter(vllm_config: Any) -> bool:
    """Whether the speculative method of a `VllmConfig` is ReDrafter."""
    return is_ours(vllm_config.speculative_config)


def is_ours(speculative_config: Any) -> bool:
    """Whether a speculative configuration, or None, is of method `redrafter`."""
    return getattr(speculative_config, "method", None) == "redrafter"


def wanted_products() -> str:
    """The value of the switch for products."""
    return os.environ.get(PRODUCTS_SWITCH, "packed")
