# SPDX-License-Identifier: Apache-2.0
"""Which backend is chosen on which machine, and the messages where none can be."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch

from redrafter_vllm.integration.attention import select
from redrafter_vllm.integration.attention.require import require_fields, require_parameters
from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError
from tests.integration.attention.fake_flash import FakeFlash
from tests.ops.devices import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU, reason="pretends to be other machines")


def config(**changes: Any) -> Any:
    from vllm.v1.attention.selector import AttentionSelectorConfig

    dense: dict[str, Any] = dict(head_size=128, dtype=torch.bfloat16, kv_cache_dtype="auto", block_size=None)
    return AttentionSelectorConfig(**{**dense, **changes})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cuda(8, 0)`: vLLM finds such a GPU and FlashAttention's extensions on this machine."""
    from vllm.platforms import current_platform
    from vllm.platforms.interface import PlatformEnum

    def pretend(*capability: int) -> None:
        FakeFlash(monkeypatch, capability)  # type: ignore[arg-type]
        monkeypatch.setattr(type(current_platform), "_enum", PlatformEnum.CUDA)

    return pretend


@pytest.mark.parametrize(
    ("capability", "changes", "chosen"),
    [
        ((8, 0), {}, select.FLASH),
        ((9, 0), {"head_size": 256, "dtype": torch.float16, "block_size": 16}, select.FLASH),
        ((9, 0), {"kv_cache_dtype": "fp8"}, select.FLASH),
        ((8, 9), {"kv_cache_dtype": "fp8"}, select.TRITON),  # FlashAttention 2 does not support an FP8 cache
        ((9, 0), {"dtype": torch.float32}, select.TRITON),
        ((7, 5), {"dtype": torch.float16}, select.TRITON),
        ((8, 0), {"head_size": 100}, select.TRITON),
    ],
)
def test_gpus(cuda: Any, capability: tuple[int, int], changes: dict[str, Any], chosen: str) -> None:
    cuda(*capability)
    assert select.select(config(**changes)) == chosen


def test_triton_where_flash_attention_is_absent(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(8, 0)
    monkeypatch.setattr("vllm.v1.attention.backends.flash_attn.get_flash_attn_version", lambda **_: None)
    assert select.select(config()) == select.TRITON
    with patch.object(select, "FLASH", "redrafter_vllm.integration.attention.not_there.Backend"):
        assert select.select(config()) == select.TRITON


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_size": 512}, "head_size not supported"),
        ({"has_sliding_window": True}, "sliding window not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"use_mla": True}, "MLA not supported"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype not supported"),
        ({"kv_cache_dtype": "int8_per_token_head"}, "kv_cache_dtype not supported"),
        ({"use_dcp": True}, "DCP not supported"),
        ({"use_batch_invariant": True}, "batch invariance not supported"),
        ({"block_size": 24}, "block_size not supported"),
    ],
)
def test_refusals_name_every_reason(cuda: Any, changes: dict[str, Any], reason: str) -> None:
    cuda(9, 0)
    with pytest.raises(ValueError, match=rf"cannot serve.*FlashTreeBackend: .*{reason}.*TritonTreeBackend: .*{reason}"):
        select.select(config(**changes))


def test_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.select(config(dtype=torch.float32)) == select.CPU
    monkeypatch.setenv(select.CPU_SWITCH, "triton")
    assert select.select(config(dtype=torch.float32)) == select.TRITON
    monkeypatch.setenv(select.CPU_SWITCH, "cuda")
    with pytest.raises(ValueError, match="REDRAFTER_CPU_ATTENTION is 'cuda'; it can be native or triton"):
        select.candidates()


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform
    from vllm.platforms.interface import PlatformEnum

    monkeypatch.setattr(type(current_platform), "_enum", PlatformEnum.ROCM)
    with pytest.raises(ValueError, match=r"no tree attention for .* devices; draft chains"):
        select.candidates()


def test_a_changed_vllm_is_one_clear_error() -> None:
    @dataclass
    class Metadata:
        seq_lens: int

    def pretend(q: int) -> int:
        return q

    require_fields(Metadata, "seq_lens")
    require_parameters(pretend, "q")
    with pytest.raises(InterfaceChangedError, match=r"uses max_seq_len of .*Metadata, which this vLLM does not have"):
        require_fields(Metadata, "seq_lens max_seq_len")
    with pytest.raises(InterfaceChangedError, match=r"uses fa_version of .*pretend"):
        require_parameters(pretend, "q fa_version")


def test_overridden_names_exist_in_vllm() -> None:
    """An override of a method that vLLM no longer has would silently have no effect."""
    from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder
    from vllm.v1.attention.backends import flash_attn, triton_attn

    from redrafter_vllm.integration.attention.impl import TreeForward
    from redrafter_vllm.integration.attention.limits import TreeLimits

    since_0_33 = {"supports_kv_cache_update_bypass"}
    for name in vars(TreeLimits).keys() - since_0_33:
        assert name.startswith("_") or hasattr(AttentionBackend, name), name
    for base in (flash_attn.FlashAttentionImpl, triton_attn.TritonAttentionImpl):
        assert hasattr(base, "do_kv_cache_update") and hasattr(base, "fused_output_quant_supported")
        require_parameters(
            base.forward,
            "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
        )
        require_parameters(
            base.__init__,
            "self num_heads head_size scale num_kv_heads alibi_slopes sliding_window kv_cache_dtype "
            "logits_soft_cap attn_type kv_sharing_target_layer_name sinks",
        )
    assert hasattr(AttentionImpl, "supports_quant_query_input") and hasattr(TreeForward, "fused_output_quant_supported")
    assert hasattr(AttentionMetadataBuilder, "build_for_cudagraph_capture")
