# SPDX-License-Identifier: Apache-2.0
"""What tree attention does not support: as capabilities that vLLM reads, and as checks when a layer is built."""

from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.attention.backend import AttentionType

from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import refuse_attention_layer

# The same as in `ops.tree_attention.kernel`, which imports Triton.
MAX_HEAD_SIZE = 256


class TreeLimits:
    """First base class, before a backend of vLLM: switches off capabilities that tree attention does not have."""

    forward_includes_kv_cache_update: bool = False
    # vLLM 0.33: some kernels write the cache themselves, and pass `forward` no keys to split.
    supports_kv_cache_update_bypass: bool = False
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16", "fp8", "fp8_e4m3"]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        supported: bool = super().supports_head_size(head_size)  # type: ignore[misc]
        return supported and head_size <= MAX_HEAD_SIZE

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Whether a query may have another length on the device than on the host: vLLM trims trees there."""
        return True

    @classmethod
    def _never(cls) -> bool:
        return False

    supports_sliding_window = supports_rswa = supports_sink = supports_mm_prefix = _never
    supports_batch_invariance = supports_non_causal = supports_per_head_quant_scales = _never
    supports_alibi_sqrt = supports_pcp = supports_dcp = _never


@report_start_errors
def check_layer(
    alibi_slopes: list[float] | None,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    attn_type: str,
    sinks: Tensor | None,
    **unknown: Any,
) -> None:
    """Refuse a layer whose attention is more than a softmax over visible keys.

    Raises:
        UnsupportedTargetError: The layer needs more; the message says what.
    """
    if alibi_slopes is not None:
        raise refuse_attention_layer("its attention is biased by storage position (ALiBi)")
    if sliding_window is not None:
        raise refuse_attention_layer("it uses sliding-window attention")
    if logits_soft_cap:
        raise refuse_attention_layer("it caps its attention logits")
    if sinks is not None:
        raise refuse_attention_layer("it uses attention sinks")
    if attn_type != AttentionType.DECODER:
        raise refuse_attention_layer(f"it has {attn_type} attention layers")
    # vLLM passes some arguments to every layer, with values that have no effect.
    if asked := sorted(name for name, value in unknown.items() if value not in (None, False, -1)):
        raise refuse_attention_layer(f"it asks its attention for {', '.join(asked)}")
