# SPDX-License-Identifier: Apache-2.0
"""Which targets are refused, and with which messages; with replacements for vLLM's configuration objects."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.integration.target_support import (
    UnsupportedTargetError,
    check_runner,
    check_step_limits,
    check_target,
)
from tests.paths import ASSET

CONNECTOR = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
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


def test_limits_on_a_step() -> None:
    check_step_limits({"long_prefill_token_threshold": 0, "max_num_batched_tokens": 17, "other": None}, 16)
    for name in ("long_prefill_token_threshold", "max_num_batched_tokens"):
        with pytest.raises(UnsupportedTargetError, match=f"{name}=16 leaves no room for a request's 17 rows.* 17"):
            check_step_limits({name: 16}, 16)


@pytest.mark.parametrize("options", [{"kv_transfer_config": CONNECTOR}, {"kv_offloading_size": 1.0}])
def test_trees_are_refused_with_kv_connectors(options: dict[str, Any]) -> None:
    """A connector's hook runs after every attention layer, when accepted tokens have not been moved yet."""
    from vllm import EngineArgs

    args = EngineArgs(str(ASSET), dtype="float32", **options)
    for drafting in ({"beam_width": 4}, {"beam_width": 1}):
        args.speculative_config = {"method": "redrafter", **drafting}
        refused = drafting["beam_width"] > 1
        with pytest.raises(UnsupportedTargetError, match=r"KV connector.*beam_width=1") if refused else nullcontext():
            args.create_speculative_config(*target_of(args))


@pytest.mark.parametrize("schedule", [None, [(1, 8, 16)]])
def test_a_step_must_have_room_for_a_request(schedule: list[tuple[int, int, int]] | None) -> None:
    """vLLM's scheduler fails or waits forever if it cannot pad a request; with a schedule it pads none."""
    from vllm import EngineArgs

    spec = {"method": "redrafter", "num_speculative_tokens_per_batch_size": schedule}
    args = EngineArgs(str(ASSET), dtype="float32", speculative_config=spec, long_prefill_token_threshold=13)
    with nullcontext() if schedule else pytest.raises(UnsupportedTargetError, match="long_prefill_token_threshold=13"):
        args.create_speculative_config(*target_of(args))


def target_of(args: Any) -> tuple[Any, Any]:
    from vllm.config import ParallelConfig

    return args.create_model_config(), ParallelConfig()
