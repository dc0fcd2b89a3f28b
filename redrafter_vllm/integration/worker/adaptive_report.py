# SPDX-License-Identifier: Apache-2.0
"""What adaptive trees tell of themselves on any device: why they do not adapt, and what came of the steps."""

import logging
import time
from typing import Any

from vllm.logger import init_logger

from redrafter_vllm.adaptive.record import AdaptiveCounts, Record

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

LOG_INTERVAL = 60.0  # seconds


def why_nowhere(config: Any, adaptive: bool | None) -> str | None:
    """What no engine's trees can adapt with, of vLLM's configuration; None where there is nothing of it."""
    if config.lora_config is not None:
        return "vLLM names the adapter of each scheduled token before it knows which of them a step leaves out"
    if config.speculative_config.num_speculative_tokens_per_batch_size and adaptive is None:
        return "num_speculative_tokens_per_batch_size is given; it is in force"
    return None


def why_not_on_cpu(config: Any, adaptive: bool | None) -> str | None:
    """What the trees of this engine cannot adapt with on a CPU; None where they can."""
    if config.parallel_config.world_size > 1:
        return "several workers would measure different times, and choose different batches"
    return why_nowhere(config, adaptive)


def log_reason(adaptive: bool | None, reason: str) -> None:
    """Say that trees do not adapt; a warning where the user has asked for it."""
    logger.log(logging.INFO if adaptive is None else logging.WARNING, "ReDrafter: trees do not adapt: %s", reason)


class StepRecords:
    """Sums of the steps, for the counters, and once a minute for the log."""

    def __init__(self) -> None:
        self.unlogged = Record()
        self._uncounted = Record()
        self._logged = time.monotonic()

    def add(self, step: Record) -> None:
        """A step has ended."""
        self._uncounted.add(step)
        self.unlogged.add(step)
        if time.monotonic() - self._logged >= LOG_INTERVAL:
            logger.info("ReDrafter: %s", self.unlogged)
            self.unlogged, self._logged = Record(), time.monotonic()

    def take_counts(self) -> AdaptiveCounts:
        """What has been counted since the last call."""
        return self._uncounted.take_counts()
