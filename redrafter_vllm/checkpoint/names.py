# SPDX-License-Identifier: Apache-2.0
"""The tensor names and config keys of drafter checkpoints in circulation, mapped to Apple's.

Apple's: a separate directory, `lm_head.{i}.linear.*`, `lm_head.{n}.weight`, `input_proj.*`, `rnn_u.*`, `rnn_w.*`.
Older ones: `lm_heads.*` and `input_projs.*`, or `0.{i}.linear.*` with `0.{n}.weight`.
Inside a target's checkpoint: any of these with the prefix `drafter.`, and a `redrafter` block in the target's config,
or TensorRT-LLM's `drafter.layers.{i}.linear.*` with `drafter.lm_head.weight`, and `redrafter_*` keys.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

MODEL_TYPE = "recurrent_drafting_drafter"
PREFIX = "drafter."
CONFIG_KEYS = ("vocab_size", "hidden_size", "exit_dim", "num_draft_layers", "rnn")
OPTIONAL_KEYS = ("draft_vocab_size",)

_BLOCK = "redrafter"
_BLOCK_PREFIX = "redrafter_"
_BLOCK_ALIASES = {"num_layers": "num_draft_layers", "is_rnn": "rnn"}
# TensorRT-LLM's keys for drafting, not for the drafter: serving has options for them.
_BLOCK_OTHERS = ("num_beams", "draft_len_per_beam", "greedy_search")
# Keys that Hugging Face's libraries write into every config.
_COMMON_KEYS = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
_MAX_GUESSES = 4  # as many as a message lists
_HEAD = re.compile(r"(?:lm_heads?|layers|0)\.(\d+\.linear\.(?:weight|bias)|\d+\.weight)")
_INPUT_PROJ = re.compile(r"input_projs\.(?:0\.)?(weight|bias)")


def drafter_fields(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The drafter's own keys in a parsed `config.json`; None when it describes no drafter.

    Keys that are absent stay absent, except what a target's config implies: hidden size and vocabulary are the
    target's, `exit_dim` is twice the hidden size and the recurrence is on.

    Raises ValueError where a block sets one key twice, to different values.
    """
    if config.get("model_type") == MODEL_TYPE:
        return {key: config[key] for key in (*CONFIG_KEYS, *OPTIONAL_KEYS) if key in config}
    if not is_inside_target(config):
        return None
    fields = {key: config[key] for key in ("vocab_size", "hidden_size") if key in config} | {"rnn": True}
    given: dict[str, str] = {}
    for key, value in _block(config).items():
        name = _block_key(key)
        if name not in (*CONFIG_KEYS, *OPTIONAL_KEYS):
            continue
        if name in given and value != fields[name]:
            raise ValueError(f"{given[name]} and {key} set {name} to different values")
        fields[name], given[name] = value, key
    if "exit_dim" not in fields and isinstance(fields.get("hidden_size"), int):
        fields["exit_dim"] = 2 * fields["hidden_size"]
    return fields


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """Unknown keys of a drafter's `config.json`, the first ones with the known key that they resemble.

    Of a target's config only the drafter's block is checked.
    """
    known: tuple[str, ...] = (*CONFIG_KEYS, *OPTIONAL_KEYS)
    if is_inside_target(config):
        known += (*_BLOCK_ALIASES, *_BLOCK_OTHERS)
        given = {key: _block_key(key) for key in _block(config)}
    else:
        given = {key: key for key in config}
    unknown = [key for key, name in given.items() if name not in (*known, *_COMMON_KEYS)]
    return [_with_guess(key, known) if place < _MAX_GUESSES else key for place, key in enumerate(unknown)]


def is_inside_target(config: Mapping[str, Any]) -> bool:
    """Whether `config.json` is that of a target with a drafter, whose tensors then have the prefix `drafter.`."""
    own = config.get("model_type") == MODEL_TYPE
    return not own and (isinstance(config.get(_BLOCK), Mapping) or "redrafter_num_layers" in config)


def _block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a target's config that describe its drafter."""
    block = config.get(_BLOCK)
    if isinstance(block, Mapping):
        return block
    return {key: value for key, value in config.items() if key.startswith(_BLOCK_PREFIX)}


def _block_key(key: str) -> str:
    bare = key.removeprefix(_BLOCK_PREFIX)
    return _BLOCK_ALIASES.get(bare, bare)


def _with_guess(key: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(key.removeprefix(_BLOCK_PREFIX), known, 1)
    return f"{key} (did you mean {nearest[0]}?)" if nearest else key


def canonical_name(name: str, num_draft_layers: int) -> str:
    """Apple's name for a stored tensor name; an unknown name is returned without its `drafter.` prefix."""
    bare = name.removeprefix(PREFIX)
    if bare == "lm_head.weight":
        return f"lm_head.{num_draft_layers}.weight"
    if match := _HEAD.fullmatch(bare):
        return f"lm_head.{match[1]}"
    if match := _INPUT_PROJ.fullmatch(bare):
        return f"input_proj.{match[1]}"
    return bare
