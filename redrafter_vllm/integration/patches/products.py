# SPDX-License-Identifier: Apache-2.0
"""The products of a target's unquantised layers on a CPU, of which vLLM's kernels are made for one row or for many."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from vllm.config import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.platforms import current_platform

from redrafter_vllm.integration.method import PRODUCTS_SWITCH, uses_redrafter, wanted_products
from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.ops import packed_linear
from redrafter_vllm.utils.huge_pages import HugePages

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

_CHOICES = ("packed", "vllm")
_HUGE_PAGES = HugePages()  # of all engines of the process


def install() -> None:
    """vLLM's list of kernels is closed. Can go when a plugin can add one, or oneDNN multiplies few rows as fast."""
    if current_platform.is_cpu():
        rebind_listed("vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm", _dispatch)


def _dispatch(original: Callable) -> Callable:
    @report_start_errors
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        config = get_current_vllm_config_or_none()
        if config is None or not uses_redrafter(config) or not _is_packed(layer.weight):
            original(layer, remove_weight)
            return
        _pack(layer, remove_weight)
        logger.info_once(
            "ReDrafter: bfloat16 weights are packed, so that products of a few rows take as long as of one"
        )

    return dispatch_cpu_unquantized_gemm


def _is_packed(weight: Tensor) -> bool:
    wanted = wanted_products()
    if wanted not in _CHOICES:
        raise UnsupportedTargetError(f"{PRODUCTS_SWITCH} is {wanted!r}; it can be {' or '.join(_CHOICES)}.")
    has_own_kernels = current_platform.is_zen_cpu()  # those of AMD's library, where it is installed
    return wanted == "packed" and not has_own_kernels and packed_linear.supports(weight)


def _pack(layer: Any, remove_weight: bool) -> None:
    size, packed = layer.weight.shape[0], _HUGE_PAGES.copy(packed_linear.pack(layer.weight))
    if remove_weight:
        # As a parameter of the layer it is an input of compiled graphs, which keep no tensors.
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.cpu_linear = lambda x, weight, bias: packed_linear.linear(x, weight, bias, size)
    else:  # an embedding's rows are still read
        layer.cpu_linear = lambda x, weight, bias: packed_linear.linear(x, packed, bias, size)
