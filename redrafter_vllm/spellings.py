# SPDX-License-Identifier: Apache-2.0
"""The spellings of a drafter checkpoint in circulation, read as Apple's.

Apple's own: a directory of its own, `lm_head.{i}.linear.*`, `lm_head.{n}.weight`, `input_proj.*`, `rnn_u.*`, `rnn_w.*`.
Older ones: `lm_heads.*` and `input_projs.*`, or `0.{i}.linear.*` with `0.{n}.weight`.
Inside a target's checkpoint: any of these behind `drafter.`, described by a `redrafter` block in the target's config,
or TensorRT-LLM's `drafter.layers.{i}.linear.*` with `drafter.lm_head.weight`, described by `redrafter_*` keys.
"""

import re
from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "recurrent_drafting_drafter"
PREFIX = "drafter."
CONFIG_KEYS = ("vocab_size", "hidden_size", "exit_dim", "num_draft_layers", "rnn")
OPTIONAL_KEYS = ("draft_vocab_size",)

_BLOCK = "redrafter"
_BLOCK_ALIASES = {"num_layers": "num_draft_layers", "is_rnn": "rnn"}
_HEAD = re.compile(r"(?:lm_heads?|layers|0)\.(\d+\.linear\.(?:weight|bias)|\d+\.weight)")
_INPUT_PROJ = re.compile(r"input_projs\.(?:0\.)?(weight|bias)")


def drafter_fields(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The drafter's own keys in a parsed `config.json`; None when it describes no drafter.

    Keys that are absent stay absent, except what a target's config implies: hidden size and vocabulary are the
    target's, `exit_dim` is twice the hidden size and the recurrence is on.
    """
    if config.get("model_type") == MODEL_TYPE:
        return {key: config[key] for key in (*CONFIG_KEYS, *OPTIONAL_KEYS) if key in config}
    if not is_inside_target(config):
        return None
    fields = {key: config[key] for key in ("vocab_size", "hidden_size") if key in config} | {"rnn": True}
    block = config[_BLOCK] if isinstance(config.get(_BLOCK), Mapping) else config
    for key, value in block.items():
        bare = key.removeprefix("redrafter_")
        name = _BLOCK_ALIASES.get(bare, bare)
        if name in (*CONFIG_KEYS, *OPTIONAL_KEYS) and (block is not config or bare != key):
            fields[name] = value
    if "exit_dim" not in fields and isinstance(fields.get("hidden_size"), int):
        fields["exit_dim"] = 2 * fields["hidden_size"]
    return fields


def is_inside_target(config: Mapping[str, Any]) -> bool:
    """Whether `config.json` is a target's that carries a drafter, whose tensors then stand behind `drafter.`."""
    own = config.get("model_type") == MODEL_TYPE
    return not own and (isinstance(config.get(_BLOCK), Mapping) or "redrafter_num_layers" in config)


def canonical_name(name: str, num_draft_layers: int) -> str:
    """Apple's name for a stored tensor name; a name of no known spelling comes back without its `drafter.` prefix."""
    bare = name.removeprefix(PREFIX)
    if bare == "lm_head.weight":
        return f"lm_head.{num_draft_layers}.weight"
    if match := _HEAD.fullmatch(bare):
        return f"lm_head.{match[1]}"
    if match := _INPUT_PROJ.fullmatch(bare):
        return f"input_proj.{match[1]}"
    return bare
