# SPDX-License-Identifier: Apache-2.0
"""Why a drafter accepts little, cause by cause (`redrafter evaluate --diagnose`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, isin

from redrafter_training.trainer.acceptance import Acceptance, Drafting
from redrafter_vllm.inspection.fit import trained_for
from redrafter_vllm.utils.findings import Finding, Level

# Below these shares a cause is named. They tell a cause from noise, and are no measure of a good drafter.
MIN_OF_HELD_OUT = 0.75  # accepted draft tokens per step, of those on the training's held-out texts
MIN_OF_GREEDY = 0.75  # the same at a temperature, of those of greedy texts
MIN_COVERAGE = 0.97  # of a response's tokens that can be drafted
MAX_AGREEMENT_GAP = 0.1  # between training and held-out text


@dataclass(frozen=True)
class Measured:
    """What was measured for one target, drafter and set of prompts."""

    drafting: Drafting
    acceptance: Acceptance
    greedy: Acceptance | None  # on greedy responses, where `acceptance` is at a temperature
    coverage: float | None  # of the responses by the draft vocabulary; None where all tokens can be drafted


def diagnose(training: Mapping[str, Any], target: Mapping[str, str], measured: Measured) -> Iterator[Finding]:
    """A finding for each possible cause.

    Args:
        training: the drafter's `training.json`; empty where there is none.
        target: the target's fingerprints now, by part.
        measured: the figures.
    """
    rate, shape = measured.acceptance.tokens_per_step, measured.drafting
    of = f"{shape.beam_width} beams of {shape.beam_length}"
    yield Finding(Level.OK, "tokens per step", f"{rate:.2f} in {measured.acceptance.steps} steps, {of}; 1 is no gain")
    yield trained_for(training, target, differing=Level.PROBLEM)
    yield from _length(training, shape)
    yield from _text(training, measured)
    if measured.greedy is not None:
        yield from _temperature(measured.acceptance, measured.greedy)
    if measured.coverage is not None:
        yield from _vocabulary(measured.coverage)
    yield from _overfitting(training)


def _length(training: Mapping[str, Any], shape: Drafting) -> Iterator[Finding]:
    config = training.get("config")
    trained = config.get("beam_length") if isinstance(config, Mapping) else None
    if isinstance(trained, int) and trained < shape.beam_length:
        says = f"drafts {shape.beam_length} tokens deep, trained for {trained}"
        yield Finding(Level.NOTE, "beam length", says, f"--beam-length {trained}, or train for more")


def _text(training: Mapping[str, Any], measured: Measured) -> Iterator[Finding]:
    rate = _held_out(training, measured.drafting)
    if rate is None:
        yield Finding(Level.NOTE, "text", "the drafter has no figure of its training to compare with")
        return
    greedy = measured.greedy or measured.acceptance
    says = f"{greedy.tokens_per_step:.2f} tokens per step on these prompts, {rate:.2f} on the training's held-out text"
    if greedy.tokens_per_step - 1 >= MIN_OF_HELD_OUT * (rate - 1):
        yield Finding(Level.OK, "text", says)
    else:
        remedy = "train on the target's answers to prompts of this kind: redrafter respond, redrafter train --init-from"
        yield Finding(Level.PROBLEM, "text", says, remedy)


def _held_out(training: Mapping[str, Any], shape: Drafting) -> float | None:
    """Tokens per step that the training measured with the same beams."""
    figures = training.get("held_out")
    same = figures.get(f"{shape.beam_width}x{shape.beam_length}") if isinstance(figures, Mapping) else None
    rate = same.get("tokens_per_step") if isinstance(same, Mapping) else None
    return float(rate) if isinstance(rate, int | float) else None


def _temperature(sampled: Acceptance, greedy: Acceptance) -> Iterator[Finding]:
    says = f"{sampled.tokens_per_step:.2f} tokens per step when sampled, {greedy.tokens_per_step:.2f} greedily"
    if sampled.tokens_per_step - 1 >= MIN_OF_GREEDY * (greedy.tokens_per_step - 1):
        yield Finding(Level.OK, "temperature", says)
    else:
        yield Finding(Level.NOTE, "temperature", says, "a sample is harder to predict: a lower temperature gives more")


def _vocabulary(coverage: float) -> Iterator[Finding]:
    says = f"{coverage:.1%} of the responses' tokens can be drafted"
    if coverage >= MIN_COVERAGE:
        yield Finding(Level.OK, "draft vocabulary", says)
    else:
        remedy = "train with --draft-vocab-size on data like these prompts, or with a larger one"
        yield Finding(Level.PROBLEM, "draft vocabulary", says, remedy)


def _overfitting(training: Mapping[str, Any]) -> Iterator[Finding]:
    seen, held_out = training.get("training"), training.get("metrics")
    first = seen.get("agreement_by_depth") if isinstance(seen, Mapping) else None
    unseen = held_out.get("redrafter1_top1") if isinstance(held_out, Mapping) else None
    if not isinstance(first, Sequence) or not first or not isinstance(unseen, int | float):
        return
    says = f"agrees with the target at {first[0]:.0%} of the training's positions, {unseen:.0%} of held-out ones"
    if first[0] - unseen <= MAX_AGREEMENT_GAP:
        yield Finding(Level.OK, "training", says)
    else:
        yield Finding(Level.PROBLEM, "training", says, "it learned its texts by heart: train on more, or fewer steps")


def coverage(texts: Sequence[tuple[Tensor, int]], draft_tokens: Tensor | None) -> float | None:
    """The share of the responses' tokens in a draft vocabulary [D]; None without one.

    Args:
        texts: each a prompt with its response [n], and the prompt's length.
        draft_tokens: target ids of the draft vocabulary.
    """
    if draft_tokens is None:
        return None
    inside = [isin(text[start:].cpu(), draft_tokens.cpu()) for text, start in texts]
    return float(sum(int(each.sum()) for each in inside) / sum(each.numel() for each in inside))
