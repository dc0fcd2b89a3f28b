# SPDX-License-Identifier: Apache-2.0
"""Properties of a target that are known without its weights: maximum text length, vocabulary, end tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

# Names that configurations use for the maximum number of positions.
_LONGEST = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Kinds of rotary scaling whose configurations state the positions after scaling; the others state those before.
_SCALED_ALREADY = frozenset({"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})


class TargetFactsError(ValueError):
    """A target that cannot be read, or whose limits are exceeded."""


@dataclass(frozen=True)
class TargetFacts:
    """Properties in a target's configuration."""

    name: str
    vocab_size: int  # rows of its embedding
    longest: float  # maximum tokens of a text; infinite if the configuration has no limit

    def check_length(self, length: int, what: str) -> None:
        """Raises TargetFactsError when `length` tokens are more than the target's maximum."""
        if length > self.longest:
            raise TargetFactsError(
                f"{self.name} takes texts of at most {self.longest:.0f} tokens, {what} asks for {length}"
            )


def read_facts(target: str, *, trust_remote_code: bool = False) -> TargetFacts:
    """
    Raises:
        TargetFactsError: there is no such target, or its configuration cannot be read.
    """
    return facts_of(target, load_config(target, trust_remote_code=trust_remote_code))


def load_config(target: str, *, trust_remote_code: bool = False) -> Any:
    """The target's configuration, of transformers' class for it.

    Raises:
        TargetFactsError: as `read_facts`.
    """
    try:
        return AutoConfig.from_pretrained(target, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        if "trust_remote_code" in str(problem):
            reason = "its repository has model code, which --trust-remote-code runs; read that code first"
        raise TargetFactsError(f"the target {target} cannot be loaded: {reason}") from problem


def facts_of(target: str, config: Any) -> TargetFacts:
    """The properties in `config`, of transformers' class for `target`."""
    text = config.get_text_config()
    named = [getattr(text, key, None) for key in _LONGEST]
    longest = min((value for value in named if isinstance(value, int) and value > 0), default=math.inf)
    # Gemma 3 states the positions after scaling, although its kind of scaling is one of the others.
    if "gemma3" not in config.model_type:
        for rope in _rope_parameters(getattr(text, "rope_parameters", None)):
            if rope.get("rope_type", "default") not in _SCALED_ALREADY:
                longest *= rope.get("factor") or 1.0
                break  # all kinds of layers share one factor
    return TargetFacts(target, int(text.vocab_size), longest)


def _rope_parameters(stated: Any) -> Iterator[dict[str, Any]]:
    """Those of the whole model, or of each kind of layer."""
    if not isinstance(stated, dict):
        return
    if "rope_type" in stated:
        yield stated
        return
    yield from (held for held in stated.values() if isinstance(held, dict))


def beyond_embedding(ids: Sequence[int], vocab_size: int | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A message about the first token without a row in the target's embedding; None when there is no such token.

    This happens when tokens were added to the tokenizer and the model was not resized. A `vocab_size` of None skips the
    check.
    """
    if vocab_size is None:
        return None
    first = next((token for token in ids if token >= vocab_size), None)
    if first is None:
        return None
    token = tokenizer.convert_ids_to_tokens(first)
    return f"{token!r} is token {first}, and the target's embedding has {vocab_size} rows"


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response in serving: those of the generation config, and the tokenizer's EOS."""
    named = config.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    return sorted(ends | ({tokenizer.eos_token_id} - {None}))


def read_end_tokens(target: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> list[int]:
    """The end tokens (see `end_tokens`) of a target whose weights are not loaded."""
    try:
        config = GenerationConfig.from_pretrained(target)
    except OSError:
        config = GenerationConfig.from_model_config(load_config(target, trust_remote_code=trust_remote_code))
    return end_tokens(config, tokenizer)
