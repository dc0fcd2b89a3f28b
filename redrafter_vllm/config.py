# SPDX-License-Identifier: Apache-2.0
"""The serving configuration: what to draft, checked once, where it is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from redrafter_vllm.utils.messages import did_you_mean, one_line, shown

MAX_BEAM_WIDTH = 64
MAX_BEAM_LENGTH = 32
MAX_NODES = 128

# TensorRT-LLM's names. Its draft length leaves out the root, as ours does.
_TENSORRT_LLM_NAMES = {
    "redrafter_num_beams": "beam_width",
    "redrafter_draft_len_per_beam": "beam_length",
}
# Apple's `--beam_length` counts the root. The same name cannot have both meanings, so that one is renamed here.
_ROOT_INCLUDED = "beam_length_with_root"
# A request is greedy by its own temperature; an engine-wide default has no effect.
_IGNORED = "redrafter_greedy_search"

QUANTIZATIONS = ("fp8", "int8")


class OptionError(ValueError):
    """A drafting option is unknown, contradicts another or is out of range. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True)
class DraftingConfig:
    """Options of drafting.

    Attributes:
        beam_width: W, beams kept at every step, 1 to 64. 1 drafts a plain chain.
        beam_length: T, drafted tokens per beam, 1 to 32; the root (already sampled by the target) is not counted.
        num_speculative_tokens: N, node slots of the prefix tree, 1 to 128; the most probable nodes get them. More than
            W·T could never be filled and are cut to that. Left out (here: 0) it is min(W·T, 16), at least T.
        logits_top_k: Renormalise over the drafter's highest N logits, as Apple's implementation does with 50; None uses
            the full softmax.
        drafter_quantization: "fp8" or "int8" keeps the drafter's matrices in 8 bits; "none" in the target's type, and
            None as well, except that adaptive trees on a CPU take "int8" in bfloat16 where that is measured to be
            faster. The emitted tokens do not depend on it, only the acceptance length does.
        project_embedding: Keep the product of the target's embedding with the drafter's W, a table of the embedding's
            size, so that drafting steps do not read W.
        adaptive: Choose the nodes of each step by how likely they are to be accepted and by how long steps take, at
            most N of each request, and leave rounds out while they do not pay. None does so where it can be done
            (docs/serving.md); False verifies N nodes in every step.
        prompt_lookup: Let trees also have what followed the last time that the text's last tokens occurred, in the
            request's prompt or answer. Without effect on chains.
    """

    beam_width: int = 4
    beam_length: int = 4
    num_speculative_tokens: int = 0
    logits_top_k: int | None = None
    drafter_quantization: str | None = None
    project_embedding: bool = False
    adaptive: bool | None = None
    prompt_lookup: bool = True

    def __post_init__(self) -> None:
        _check_int("beam_width", self.beam_width, 1, MAX_BEAM_WIDTH)
        _check_int("beam_length", self.beam_length, 1, MAX_BEAM_LENGTH)
        _check_int("num_speculative_tokens", self.num_speculative_tokens, 0, MAX_NODES)
        if self.num_speculative_tokens == 0:
            object.__setattr__(self, "num_speculative_tokens", max(self.beam_length, min(self.max_nodes, 16)))
        object.__setattr__(self, "num_speculative_tokens", min(self.num_speculative_tokens, self.max_nodes))
        if self.logits_top_k is not None:
            _check_int("logits_top_k", self.logits_top_k, self.beam_width, 1 << 20)
        if self.drafter_quantization not in (None, "none", *QUANTIZATIONS):
            raise OptionError(
                f"drafter_quantization={shown(self.drafter_quantization)} is unknown; it must be null, "
                f"'none', {' or '.join(map(repr, QUANTIZATIONS))}."
            )
        for name in ("project_embedding", "prompt_lookup"):
            if not isinstance(given := getattr(self, name), bool):
                raise OptionError(f"{name} must be true or false, not {shown(given)}.")
        if self.adaptive is not None and not isinstance(self.adaptive, bool):
            raise OptionError(f"adaptive must be true, false or null, not {shown(self.adaptive)}.")

    @property
    def max_nodes(self) -> int:
        """The beams of all steps, each of which can be a node."""
        return self.beam_width * self.beam_length

    @property
    def copies_text(self) -> bool:
        """Whether trees also get copies of the text; beside a chain these would be branches."""
        return self.prompt_lookup and not self.is_chain

    @property
    def round_lengths(self) -> tuple[int, ...]:
        """Beam steps of the rounds that a GPU records for trees that adapt, those of a whole one last.

        1 to 4, 8, 16 … and all; where trees have copies of the text also 0, for rounds of copies alone.
        """
        shorter = (steps for steps in range(1, self.beam_length) if steps <= 4 or steps.bit_count() == 1)
        return (*[0] * self.copies_text, *shorter, self.beam_length)

    @property
    def max_depth(self) -> int:
        """The most draft tokens that one step can accept: a beam's, or those of a tree that is one copy of the text."""
        return self.num_speculative_tokens if self.copies_text else self.beam_length

    @property
    def is_chain(self) -> bool:
        """One beam: candidates are a plain chain, for which no tree attention is needed."""
        return self.beam_width == 1


def parse_drafting_options(options: Mapping[str, Any], also_known: Sequence[str] = ()) -> DraftingConfig:
    """Build the configuration from user options in our names, TensorRT-LLM's or Apple's.

    Args:
        options: By name; None leaves an option at its default.
        also_known: Names allowed beside them, which are ignored here and listed in the message about an unknown one.

    Raises:
        OptionError: An unknown name, one quantity given twice, or a value out of range.
    """
    values: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    known = (*also_known, *known_options())
    options = {name: value for name, value in options.items() if name not in also_known}
    for name, value in options.items():
        if name not in known:
            raise OptionError(
                f"Unknown ReDrafter option {shown(name)} in the speculative config{did_you_mean(name, known)}; known "
                f"options are {', '.join(known)}."
            )
        if name == _IGNORED or value is None:
            continue
        target = _TENSORRT_LLM_NAMES.get(name, name)
        if name == _ROOT_INCLUDED:
            _check_int(name, value, 2, MAX_BEAM_LENGTH + 1)
            target, value = "beam_length", value - 1
        if target in values:
            raise OptionError(f"{name!r} and {given_as[target]!r} both set {target}; give only one of them.")
        values[target], given_as[target] = value, name
    if "num_speculative_tokens" in values:  # 0 means the default within the project only
        _check_int("num_speculative_tokens", values["num_speculative_tokens"], 1, MAX_NODES)
    return DraftingConfig(**values)


def known_options() -> tuple[str, ...]:
    """Every option name that `parse_drafting_options` accepts."""
    own = tuple(field.name for field in fields(DraftingConfig))
    return (*own, *_TENSORRT_LLM_NAMES, _ROOT_INCLUDED, _IGNORED)


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} must be an integer, not {shown(value)}.")
    if not low <= value <= high:
        raise OptionError(f"{name}={shown(value)} is out of range; it must be between {low} and {high}.")
