# SPDX-License-Identifier: Apache-2.0
"""Builds the speculative configuration of method `redrafter` from the user's options, after checking everything."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import vllm.envs as envs
from vllm.logger import init_logger
from vllm.triton_utils import HAS_TRITON

from redrafter_vllm.checkpoint.io import check_against_target, check_checkpoint
from redrafter_vllm.checkpoint.locate import WORD, resolve_drafter
from redrafter_vllm.config import DraftingConfig, OptionError, known_options, parse_drafting_options
from redrafter_vllm.integration.frontend.budget_schedule import NAME as SCHEDULE
from redrafter_vllm.integration.frontend.budget_schedule import check_schedule
from redrafter_vllm.integration.frontend.quantization import check_quantization
from redrafter_vllm.integration.speculative_config import RedrafterSpeculativeConfig
from redrafter_vllm.integration.target_support import check_parallelism, check_runner, check_target
from redrafter_vllm.utils.messages import did_you_mean, shown

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

# vLLM's own options that have a meaning for this method.
_VLLM_OPTIONS = ("method", "model", SCHEDULE)
_FROM_ENGINE = ("target_model_config", "target_parallel_config")

# Vocabularies are padded to multiples of at most 512, and get a few hundred special tokens; a drafter that lacks more
# than this was made for another tokenizer.
MAX_VOCAB_PADDING = 1024


def build_speculative_config(options: dict[str, Any]) -> RedrafterSpeculativeConfig:
    """Build the configuration, after all checks that are possible before any weights load.

    Raises:
        ValueError: One sentence that says what is wrong, where, and what to do.
    """
    user: dict[str, Any] = {}
    for name, value in options.items():
        if user.setdefault(spelt := str(name).replace("-", "_"), value) is not value:
            raise OptionError(
                f"{shown(spelt)} is given twice, with a dash and with an underscore; give only one of them."
            )
    engine = {name: user.pop(name, None) for name in _FROM_ENGINE}
    _check_method(user)
    drafting = parse_drafting_options(user, also_known=_VLLM_OPTIONS)
    schedule = user.get(SCHEDULE)
    check_schedule(schedule, drafting.num_speculative_tokens)
    check_runner(envs.VLLM_USE_V2_MODEL_RUNNER, HAS_TRITON)
    wanted = user.get("num_speculative_tokens") or 0
    if wanted > drafting.num_speculative_tokens:
        logger.warning("num_speculative_tokens=%d is more than %s can fill; it is cut.", wanted, drafting)
    target = engine["target_model_config"]
    check_target(target, drafting)
    check_parallelism(engine["target_parallel_config"], drafting, target.is_moe)
    check_quantization(drafting.drafter_quantization, target.dtype)
    checkpoint = resolve_drafter(user.get("model"), target.model)
    _check_checkpoint(checkpoint, target, drafting)
    logger.info("ReDrafter: drafter %s, %s", checkpoint, drafting)
    return RedrafterSpeculativeConfig(
        model=str(checkpoint),
        checkpoint=str(checkpoint),
        **asdict(drafting),
        num_speculative_tokens_per_batch_size=schedule,
        **engine,
    )


def _check_method(options: dict[str, Any]) -> None:
    """Raises OptionError where the method is misspelt, or only its options are given, without it."""
    method, model = options.get("method"), options.get("model")
    if method not in (None, WORD):
        raise OptionError(
            f"Unknown method {shown(method)} in the speculative config{did_you_mean(method, [WORD])}; ReDrafter's is "
            f"{WORD!r}."
        )
    if method is None and model is None and options.keys() <= {*_VLLM_OPTIONS, *known_options()}:
        raise OptionError(
            f'The speculative config has options of ReDrafter\'s, but names no method; add "method": "{WORD}".'
        )


def _check_checkpoint(checkpoint: Path, target: Any, drafting: DraftingConfig) -> None:
    drafter_config = check_checkpoint(checkpoint)
    check_against_target(
        drafter_config,
        hidden_size=target.get_hidden_size(),
        vocab_size=target.get_vocab_size(),
        allowed_padding=MAX_VOCAB_PADDING,
    )
    if drafter_config.vocab_size < target.get_vocab_size():
        logger.warning(
            "The drafter has %d of the target's %d tokens; the last ones are never drafted.",
            drafter_config.vocab_size,
            target.get_vocab_size(),
        )
    if drafting.beam_width > drafter_config.output_size:
        raise OptionError(
            f"beam_width={drafting.beam_width} is out of range; the drafter at {checkpoint} proposes from "
            f"{drafter_config.output_size} tokens only."
        )
