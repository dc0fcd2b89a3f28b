# SPDX-License-Identifier: Apache-2.0
"""Whether a user asks for this method. Apart from what serves it, so that asking loads nothing."""

from typing import Any

from redrafter_vllm.resolve import WORD
from redrafter_vllm.spellings import MODEL_TYPE


def is_redrafter(options: dict[str, Any] | None) -> bool:
    """Whether speculative options ask for ReDrafter: by method, by the word, or by the checkpoint's `model_type`."""
    if not options:
        return False
    method, model = options.get("method"), options.get("model")
    if method is not None:
        return method == WORD
    return model == WORD or (isinstance(model, str) and _model_type(model) == MODEL_TYPE)


def _model_type(model: str) -> str | None:
    """`model_type` of a checkpoint's config.json; None where there is none to be read."""
    from transformers import PretrainedConfig

    try:
        config_dict, _ = PretrainedConfig.get_config_dict(model)
    except Exception:  # not a checkpoint: whatever it is, vLLM will say
        return None
    return config_dict.get("model_type")
