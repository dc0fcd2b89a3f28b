# SPDX-License-Identifier: Apache-2.0
"""Held-out prompts, continued by the target: what simulated tokens per step are measured on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.data.python_corpus import load_corpus, split, unseen_prompts
from redrafter_training.responses.engine import continue_prompts
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.target.model import TargetModel
from redrafter_training.target.properties import facts_of
from redrafter_training.trainer.acceptance import Drafting, measure_each
from redrafter_training.trainer.calibration import calibrate
from redrafter_vllm.adaptive.survival import Coefficients
from redrafter_vllm.model.drafter import Drafter

EXPORT_DTYPE = torch.bfloat16
EVALUATED_TOKENS = 96

TokensPerStep = dict[str, dict[str, Any]]  # `Acceptance` as a dict, by "beam width x beam length"


@dataclass(frozen=True)
class HeldOutFigures:
    """What held-out prompts say about a drafter."""

    tokens_per_step: TokensPerStep
    calibration: Coefficients


def held_out_figures(
    target: TargetModel, drafter: Drafter, prompts: Sequence[Tensor], beam_length: int
) -> HeldOutFigures:
    """Of the drafter in the precision of its export, on greedy continuations of held-out prompts."""
    rounded = drafter.to(EXPORT_DTYPE).to(target.device, target.embedding.dtype)
    chosen, new_tokens = fitting(prompts, facts_of("", target.model.config).longest)
    continued = continue_prompts(TransformersEngine(target), chosen, new_tokens)
    texts = [(text.to(target.device), len(prompt)) for text, prompt in zip(continued, chosen, strict=True)]
    shapes = [Drafting(width, beam_length, width * beam_length) for width in (1, 4)]
    figures = measure_each(target, rounded, texts, shapes)
    accepted = {f"{s.beam_width}x{s.beam_length}": asdict(of) for s, of in zip(shapes, figures, strict=True)}
    return HeldOutFigures(accepted, calibrate(target, rounded, texts, shapes[-1]))


def fitting(prompts: Sequence[Tensor], longest: float) -> tuple[list[Tensor], int]:
    """The prompts that the target can continue within its `longest` text, and the number of new tokens for each."""
    new_tokens = int(min(EVALUATED_TOKENS, longest // 2))
    short = [prompt for prompt in prompts if len(prompt) + new_tokens <= longest]
    # With a target of few positions all prompts may be too long; then their last tokens are used.
    return short or [prompt[-int(longest - new_tokens) :] for prompt in prompts], new_tokens


def held_out_texts(
    target: TargetModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: int,
    new_tokens: int,
    seed: int,
    temperature: float = 0.0,
    corpus: Path | None = None,
    longest: float = math.inf,
) -> list[tuple[Tensor, int]]:
    """The target's continuations of at most `prompts` prompts from held-out source files, and the prompts' lengths.

    Of a prompt that leaves less than `new_tokens` of the target's `longest` text, only the end is used.
    """
    training, held_out = split(load_corpus(corpus))
    unseen = unseen_prompts(training, held_out, prompts, seed=seed, max_chars=600)
    encoded = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in unseen]
    if math.isfinite(longest):
        encoded = [prompt[-int(longest - new_tokens) :] for prompt in encoded]
    engine = TransformersEngine(target)
    texts = continue_prompts(engine, encoded, new_tokens, temperature=temperature, seed=seed)
    return [(text, len(prompt)) for text, prompt in zip(texts, encoded, strict=True)]
