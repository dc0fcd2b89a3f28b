# SPDX-License-Identifier: Apache-2.0
"""Whether a user's options mean this method; in its own file so that finding out loads nothing else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.locate import WORD, is_path
from redrafter_vllm.checkpoint.names import CONFIG_KEYS, MODEL_TYPE
from redrafter_vllm.config import known_options
from redrafter_vllm.utils.messages import is_near

# Names by which a user may mean the method.
_NAMES = (WORD, "recurrent_drafter", MODEL_TYPE)
# Options that no other method of vLLM has.
_OWN_OPTIONS = {*known_options()} - {"num_speculative_tokens"}
# Keys of a drafter's config that other models do not have.
_OWN_KEYS = {*CONFIG_KEYS} - {"vocab_size", "hidden_size"}
_OTHER_FORMATS = ("params.json", "*.gguf")  # vLLM reads these without a config.json


def is_redrafter(options: Mapping[str, Any] | None) -> bool:
    """Whether speculative options mean ReDrafter: by method, by the word, or by the checkpoint's `model_type`.

    True also for faulty options with which vLLM would fail in any case: a misspelt method, a path that does not exist,
    a damaged checkpoint. `build_speculative_config` then raises an error that says in one sentence what is wrong.
    """
    if not options:
        return False
    method, model = options.get("method"), options.get("model")
    if method is not None:
        return isinstance(method, str) and any(is_near(method, name) for name in _NAMES)
    if model is None:
        return not _OWN_OPTIONS.isdisjoint(map(str, options)) or any(value == WORD for value in options.values())
    if not isinstance(model, str | os.PathLike) or not str(model).strip():
        return True
    return _is_drafter(os.fspath(model))


def _is_drafter(model: str) -> bool:
    try:
        path = Path(model).expanduser()
        if model != WORD and path.is_dir():
            return _describes_drafter(path)
        if is_path(model):
            return not path.exists()  # a file may be a model in another format
    except (OSError, RuntimeError, ValueError):  # not a path that can be opened
        return True
    return is_near(model, WORD) or _model_type_on_hub(model) == MODEL_TYPE


def _describes_drafter(directory: Path) -> bool:
    """Whether a directory holds a drafter, or nothing that vLLM could read."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return not any(any(directory.glob(pattern)) for pattern in _OTHER_FORMATS)
    if not isinstance(config, dict):
        return True
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        return is_near(model_type, MODEL_TYPE)
    return not config or not _OWN_KEYS.isdisjoint(config)


def _model_type_on_hub(model: str) -> str | None:
    """`model_type` of a checkpoint's config.json; None where it cannot be read."""
    from transformers import PretrainedConfig

    try:
        config_dict, _ = PretrainedConfig.get_config_dict(model)
    except Exception:  # not a checkpoint: vLLM reports the error
        return None
    return config_dict.get("model_type")
