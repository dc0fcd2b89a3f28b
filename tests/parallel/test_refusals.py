# SPDX-License-Identifier: Apache-2.0
"""Parallel layouts that are refused, by vLLM's own configuration objects, before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig

from redrafter_vllm.integration.target_support import UnsupportedTargetError, check_pipeline
from tests.engine.generation import CHAIN, TREE
from tests.parallel.engines import OPTIONS, engine


@pytest.mark.parametrize(
    ("drafting", "options", "reason"),
    [
        (TREE, {"pipeline_parallel_size": 2}, "trees with pipeline_parallel_size=2: .*beam_width=1"),
        (
            CHAIN,
            {"pipeline_parallel_size": 2, "distributed_executor_backend": "external_launcher"},
            "pipeline parallelism under external_launcher: .*V1",
        ),
        (
            CHAIN,
            {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
            "decode_context_parallel_size=2: .*cache entries are on several ranks",
        ),
        (CHAIN, {"prefill_context_parallel_size": 2}, "prefill_context_parallel_size=2: .*hidden states"),
        (
            TREE,
            {"tensor_parallel_size": 2, "enable_batch_sharded_sampling": True},
            "batch-sharded sampling: .*leave out enable_batch_sharded_sampling",
        ),
        (TREE, {"enable_dbo": True}, "dual batch overlap: .*leave out enable_dbo"),
    ],
)
def test_layouts(
    drafting: dict[str, Any], options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import EngineArgs

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    with pytest.raises(UnsupportedTargetError, match=f"ReDrafter does not run with {reason}"):
        EngineArgs(**OPTIONS, **options, speculative_config=drafting).create_engine_config()


def test_replicas_that_share_experts(tmp_path: Path) -> None:
    from vllm import EngineArgs

    shape = {"hidden_size": 64, "vocab_size": 320, "num_attention_heads": 2, "num_local_experts": 2}
    MixtralConfig(**shape, architectures=["MixtralForCausalLM"]).save_pretrained(tmp_path)
    experts = EngineArgs(**{**OPTIONS, "model": str(tmp_path)}, data_parallel_size=2, speculative_config=TREE)
    with pytest.raises(
        UnsupportedTargetError, match=r"data_parallel_size=2 on a mixture-of-experts target: .*lockstep"
    ):
        experts.create_engine_config()


@pytest.mark.parametrize("options", [{"tensor_parallel_size": 2}, {"data_parallel_size": 2}])
def test_supported_layouts(options: dict[str, Any]) -> None:
    from vllm import EngineArgs

    EngineArgs(**OPTIONS, **options, speculative_config=TREE).create_engine_config()


def test_pipelines_need_asynchronous_scheduling() -> None:
    check_pipeline(1, False)
    check_pipeline(2, True)
    for switch in (False, None):
        with pytest.raises(UnsupportedTargetError, match="pipeline_parallel_size=2 without asynchronous scheduling"):
            check_pipeline(2, switch)


@pytest.mark.engine
def test_a_pipeline_on_a_cpu_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    """vLLM's CPU platform switches asynchronous scheduling off; the worker that would draft raises the error."""
    with (
        pytest.raises(Exception, match="WorkerProc initialization failed"),
        engine(pipeline_parallel_size=2, speculative_config=CHAIN),
    ):
        pass
    captured = capfd.readouterr()
    assert "without asynchronous scheduling" in captured.out + captured.err
