# SPDX-License-Identifier: Apache-2.0
"""Which targets can be served; the others are refused before their weights load."""

from collections.abc import Mapping
from typing import Any

from redrafter_vllm.config import DraftingConfig


class UnsupportedTargetError(ValueError):
    """The target, or the way in which it is to run, cannot be served with this method."""


def check_target(model: Any, drafting: DraftingConfig) -> None:
    """Refuse targets that ReDrafter cannot serve exactly (`model` is vLLM's ModelConfig).

    A chain (`beam_width=1`) runs on vLLM's own attention, so it is refused only where drafting itself is impossible;
    trees need full attention over a cache that can be compacted.
    """
    reasons = _never_served(model)
    if not reasons and not drafting.is_chain:
        reasons = [f"{reason} (a chain works: beam_width=1)" for reason in _no_trees(model)]
    if reasons:
        raise UnsupportedTargetError(f"ReDrafter cannot serve {model.model!r}: {'; '.join(reasons)}.")


def check_parallelism(parallel: Any, drafting: DraftingConfig, is_moe: bool) -> None:
    """Refuse parallel layouts that the drafter does not support.

    Tensor parallelism works with everything, data parallelism with independent replicas, pipeline parallelism with
    chains.

    Args:
        parallel: vLLM's ParallelConfig.
        drafting: The drafting options.
        is_moe: Whether the target has experts, which replicas share.
    """
    for refused, what, reason in (
        (
            parallel.pipeline_parallel_size > 1 and not drafting.is_chain,
            f"trees with pipeline_parallel_size={parallel.pipeline_parallel_size}",
            "vLLM sends earlier stages the ids of the draft tokens, but not their tree; a chain works: beam_width=1",
        ),
        (
            parallel.pipeline_parallel_size > 1 and parallel.distributed_executor_backend == "external_launcher",
            "pipeline parallelism under external_launcher",
            "vLLM falls back to Model Runner V1 there; use the executor mp or ray",
        ),
        (
            parallel.data_parallel_size > 1 and is_moe,
            f"data_parallel_size={parallel.data_parallel_size} on a mixture-of-experts target",
            "its replicas run in lockstep, which is untested with ReDrafter; use tensor_parallel_size",
        ),
        (
            parallel.decode_context_parallel_size > 1,
            f"decode_context_parallel_size={parallel.decode_context_parallel_size}",
            "a request's cache entries are on several ranks, so that tree attention and moving them are impossible",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            f"prefill_context_parallel_size={parallel.prefill_context_parallel_size}",
            "no rank has all hidden states from which drafting starts",
        ),
        (
            bool(parallel.enable_batch_sharded_sampling),
            "batch-sharded sampling",
            "every rank walks every request's tree; leave out enable_batch_sharded_sampling",
        ),
        (
            parallel.use_ubatching,
            "dual batch overlap",
            "vLLM does not combine it with speculative decoding; leave out enable_dbo and ubatch_size",
        ),
    ):
        if refused:
            raise UnsupportedTargetError(f"ReDrafter does not run with {what}: {reason}.")


def check_pipeline(pipeline_parallel_size: int, async_scheduling: bool | None) -> None:
    """Refuse pipelines without asynchronous scheduling, once vLLM has decided on it.

    vLLM then passes a step's drafts to the scheduler before the token that they follow, and the next step is a token
    short (`EngineCore.step_with_batch_queue` and `post_step`).
    """
    if pipeline_parallel_size > 1 and not async_scheduling:
        raise UnsupportedTargetError(
            f"ReDrafter does not run with pipeline_parallel_size={pipeline_parallel_size} without asynchronous "
            "scheduling, as vLLM then schedules drafts before the token that they follow; leave out "
            "--no-async-scheduling, or use tensor_parallel_size. On a CPU vLLM always switches it off."
        )


def check_transfer(has_connector: bool, drafting: DraftingConfig) -> None:
    """Refuse trees where a KV connector reads the cache.

    A connector may save each layer as soon as its attention has run, when the entries of accepted tokens are not yet
    where plain decoding would have put them.
    """
    if has_connector and not drafting.is_chain:
        raise UnsupportedTargetError(
            "ReDrafter does not run trees with a KV connector, which may save the cache before a step's accepted "
            "tokens are in their places; leave out kv_transfer_config and kv_offloading_size, or use beam_width=1."
        )


def check_step_limits(limits: Mapping[str, int | None], num_speculative_tokens: int) -> None:
    """Refuse limits on a step's tokens that a single request exceeds.

    vLLM pads a waiting request of one token to 1 + N rows. Where a limit cuts them its scheduler fails, or never
    schedules the request; this happens with requests that share a prefix, and with sessions.

    Args:
        limits: By the option's name; None or 0 is no limit.
        num_speculative_tokens: N, the number of draft tokens in every step.
    """
    rows = 1 + num_speculative_tokens
    for name, limit in limits.items():
        if limit and limit < rows:
            raise UnsupportedTargetError(
                f"{name}={limit} leaves no room for a request's {rows} rows in a step (a token and "
                f"num_speculative_tokens={num_speculative_tokens}); set at least {rows}, or fewer speculative tokens."
            )


def check_runner(v2_switch: bool | None, has_triton: bool) -> None:
    """Refuse Model Runner V1, which cannot verify trees.

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
        # vLLM's CPU kernels compute other logits for two query tokens than for one, so not even a chain is exact there.
        reasons.append("its attention is MLA, with which drafts have not been shown to leave the output unchanged")
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
    """The error for an attention layer that cannot be served, which is only known when it is built."""
    return UnsupportedTargetError(f"ReDrafter's tree attention cannot serve this model: {reason}; use beam_width=1.")
