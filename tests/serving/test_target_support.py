# SPDX-License-Identifier: Apache-2.0
"""Which targets are refused, and in which words; on stand-ins for vLLM's configuration objects."""

from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.integration.target_support import (
    UnsupportedTargetError,
    check_runner,
    check_target,
)

TREE, CHAIN = DraftingConfig(), DraftingConfig(beam_width=1)


def model(text: dict[str, Any] | None = None, *, sliding_window: int | None = None, **changes: Any) -> SimpleNamespace:
    dense = dict(
        model="org/name",
        runner_type="generate",
        is_encoder_decoder=False,
        is_attention_free=False,
        is_hybrid=False,
        is_multimodal_model=False,
        use_mla=False,
        hf_text_config=SimpleNamespace(**(text or {})),
        get_sliding_window=lambda: sliding_window,
    )
    return SimpleNamespace(**{**dense, **changes})


def test_dense_decoders_pass() -> None:
    check_target(model(), TREE)
    check_target(model({"layer_types": ["full_attention"] * 2, "attention_chunk_size": None}), TREE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"runner_type": "pooling"}, "runs as a pooling model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"is_attention_free": True}, "no attention"),
        ({"is_hybrid": True}, "state-space layers"),
        ({"is_multimodal_model": True}, "multimodal"),
        ({"use_mla": True}, "MLA"),
    ],
)
def test_never_served(changes: dict[str, Any], reason: str) -> None:
    for drafting in (TREE, CHAIN):
        with pytest.raises(UnsupportedTargetError, match=f"cannot serve 'org/name'.*{reason}"):
            check_target(model(**changes), drafting)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (model(sliding_window=4096), "sliding-window"),
        (model({"layer_types": ["full_attention", "sliding_attention"]}), "sliding-window"),
        (model({"attention_chunk_size": 8192}), "chunked local attention"),
        (model({"attn_logit_softcapping": 50.0}), "caps its attention logits"),
    ],
)
def test_only_chains(target: SimpleNamespace, reason: str) -> None:
    check_target(target, CHAIN)
    with pytest.raises(UnsupportedTargetError, match=rf"{reason}.*beam_width=1"):
        check_target(target, TREE)


def test_runner() -> None:
    check_runner(None, True)
    check_runner(True, True)
    with pytest.raises(UnsupportedTargetError, match="VLLM_USE_V2_MODEL_RUNNER"):
        check_runner(False, True)
    with pytest.raises(UnsupportedTargetError, match="Triton"):
        check_runner(None, False)
