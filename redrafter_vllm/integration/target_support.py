# SPDX-License-Identifier: Apache-2.0
"""Which targets can be served, and why others are refused before their weights load."""

from typing import Any

from redrafter_vllm.config import DraftingConfig


class UnsupportedTargetError(ValueError):
    """The target, or the way it is to be run, cannot be served with this method."""


def check_target(model: Any, drafting: DraftingConfig) -> None:
    """Refuse targets that ReDrafter cannot serve exactly (`model` is vLLM's ModelConfig).

    A chain (`beam_width=1`) runs on vLLM's own attention, so only what the drafting itself cannot do is refused; trees
    need full attention over a cache that can be compacted.
    """
    reasons = _never_served(model)
    if not reasons and not drafting.is_chain:
        reasons = [f"{reason} (a chain works: beam_width=1)" for reason in _no_trees(model)]
    if reasons:
        raise UnsupportedTargetError(f"ReDrafter cannot serve {model.model!r}: {'; '.join(reasons)}.")


def check_parallelism(parallel: Any) -> None:
    """Refuse parallel layouts that the drafter does not follow (`parallel` is vLLM's ParallelConfig)."""
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        size = getattr(parallel, name)
        if size > 1:
            raise UnsupportedTargetError(f"ReDrafter does not run with {name}={size} yet; use 1.")


def check_runner(v2_switch: bool | None, has_triton: bool) -> None:
    """Refuse Model Runner V1, which has no place for trees.

    Args:
        v2_switch: vLLM's `VLLM_USE_V2_MODEL_RUNNER`, None where it is not set.
        has_triton: Whether vLLM found a usable Triton, without which it falls back to V1.
    """
    if v2_switch is False:
        raise UnsupportedTargetError("ReDrafter needs Model Runner V2; unset VLLM_USE_V2_MODEL_RUNNER=0.")
    if not has_triton:
        raise UnsupportedTargetError(
            "ReDrafter needs Model Runner V2, which needs Triton, and vLLM found none; on a machine without a GPU "
            "install the CPU support (`make setup` does)."
        )


def _never_served(model: Any) -> list[str]:
    reasons = []
    if model.runner_type != "generate":
        reasons.append(f"it runs as a {model.runner_type} model, which emits no tokens")
    if model.is_encoder_decoder:
        reasons.append("it is an encoder-decoder model")
    elif model.is_attention_free:
        reasons.append("it has no attention (state-space layers cannot step back over rejected drafts)")
    elif model.is_hybrid:
        reasons.append("it mixes attention with state-space layers, which cannot step back over rejected drafts")
    if model.is_multimodal_model:
        reasons.append("it is multimodal, and its positions are not those of a text")
    if model.use_mla:
        # vLLM's CPU kernels give other logits for two query tokens than for one, so not even a chain is exact there.
        reasons.append("its attention is MLA, on which drafts have not been shown to leave the output as it is")
    return reasons


def _no_trees(model: Any) -> list[str]:
    text = model.hf_text_config
    reasons = []
    if model.get_sliding_window() is not None or "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        reasons.append("it uses sliding-window attention")
    if getattr(text, "attention_chunk_size", None):
        reasons.append("it uses chunked local attention")
    if getattr(text, "attn_logit_softcapping", None):
        reasons.append("it caps its attention logits")
    return reasons


def refuse_attention_layer(reason: str) -> UnsupportedTargetError:
    """The error of an attention layer that only shows itself when it is built."""
    return UnsupportedTargetError(f"ReDrafter's tree attention cannot serve this model: {reason}; use beam_width=1.")
