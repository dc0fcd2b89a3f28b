# SPDX-License-Identifier: Apache-2.0
"""Whether a drafter's weights are served in 8 bits on a CPU: measured there, where nothing else is asked for."""

import time
from dataclasses import replace

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.integration.worker.adaptive_report import why_not_on_cpu
from redrafter_vllm.integration.worker.drafter_loading import pack_drafter
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

REPEATS = 7  # of each measurement, of which the shortest counts
WORTHWHILE = 0.9  # of the time in the target's type: 8 bits must take less than this
_FLUSHED = 1 << 26  # bytes that are written between two measurements, as a step of the target reads far more


def with_faster_weights(path: str, drafting: DraftingConfig, vllm_config: VllmConfig) -> DraftingConfig:
    """`drafting`, with INT8 weights for the drafter at `path` where the trees adapt to a CPU that is faster with them.

    Trees that adapt depend on measured times already. With fixed ones, or in fp32, the same drafts are to come from
    every machine.
    """
    is_open = drafting.drafter_quantization is None and drafting.adaptive is not False
    dtype = vllm_config.model_config.dtype
    if not (is_open and current_platform.is_cpu() and dtype == torch.bfloat16):
        return drafting
    if why_not_on_cpu(vllm_config, drafting.adaptive) is not None:
        return drafting
    drafter = Drafter.from_pretrained(path, dtype=dtype, device="cpu")
    as_they_are, in_8_bits = (
        _seconds(pack_drafter(drafter, replace(drafting, drafter_quantization=name), vllm_config), drafting.beam_width)
        for name in ("none", "int8")
    )
    chosen = "int8" if in_8_bits < WORTHWHILE * as_they_are else "none"
    logger.info(
        "ReDrafter: drafter weights %s; logits of a beam step take %.2f ms, with INT8 weights %.2f ms",
        "in INT8" if chosen == "int8" else "as they are", 1e3 * as_they_are, 1e3 * in_8_bits,
    )  # fmt: skip
    return replace(drafting, drafter_quantization=chosen)


@torch.inference_mode()
def _seconds(drafter: DrafterInterface, beam_width: int) -> float:
    """Of the logits of one request's beams, with weights that are not in the processor's caches."""
    size, flushed = drafter.config.hidden_size, torch.zeros(_FLUSHED, dtype=torch.uint8)
    context, state = torch.zeros(1, size, dtype=drafter.dtype), torch.zeros(1, beam_width, size, dtype=drafter.dtype)
    share = drafter.context_share(context)
    return min(_timed(drafter, share, state, flushed) for _ in range(REPEATS))


def _timed(drafter: DrafterInterface, share: Tensor, state: Tensor, flushed: Tensor) -> float:
    flushed.add_(1)
    began = time.perf_counter()
    drafter.logits(share, state)
    return time.perf_counter() - began
