# SPDX-License-Identifier: Apache-2.0
"""The engine's other arguments: those that do not go with ReDrafter, and the attention backend that trees need."""

from typing import Any

from vllm.v1.attention.backends.registry import AttentionBackendEnum

from redrafter_vllm.integration.attention.select import register_tree_attention
from redrafter_vllm.integration.target_support import UnsupportedTargetError, check_step_limits, check_transfer


def check_engine_args(engine_args: Any, config: Any) -> None:
    """Refuse arguments with which vLLM would fail later, or emit other tokens than without drafts.

    Raises:
        UnsupportedTargetError: A KV connector with trees, or a limit on a step's tokens that is too small.
    """
    has_connector = engine_args.kv_transfer_config is not None or engine_args.kv_offloading_size is not None
    check_transfer(has_connector, config.drafting)
    # With a schedule of budgets the scheduler pads nothing.
    if not config.num_speculative_tokens_per_batch_size:
        names = "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold"
        limits = {name: getattr(engine_args, name) for name in names}
        check_step_limits(limits, config.num_speculative_tokens)


def select_tree_attention(engine_args: Any) -> None:
    """Make the engine's attention backend ours.

    Raises:
        UnsupportedTargetError: The user has chosen another backend, which has no tree attention.
    """
    chosen = engine_args.attention_backend or engine_args.attention_config.backend
    if chosen not in (None, "CUSTOM", AttentionBackendEnum.CUSTOM):
        name = getattr(chosen, "name", chosen)
        raise UnsupportedTargetError(
            f"ReDrafter's trees need their own attention backend, but {name} was chosen; leave the attention backend "
            "unset, or draft chains (beam_width=1)."
        )
    register_tree_attention()
    if engine_args.attention_config.backend is None:
        engine_args.attention_backend = AttentionBackendEnum.CUSTOM
