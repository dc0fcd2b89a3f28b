# SPDX-License-Identifier: Apache-2.0
"""On a CPU vLLM's own attention serves what has no drafts, and our kernel reads vLLM's cache."""

from pathlib import Path
from unittest.mock import patch

import pytest
from vllm.v1.attention.backends import cpu_attn

from redrafter_vllm.integration.attention import cpu
from redrafter_vllm.integration.attention.cpu import CpuTreeMetadataBuilder
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, runner
from tests.models import VOCAB

pytestmark = cpu_only


@pytest.mark.parametrize("is_enabled", [True, False])
def test_only_steps_with_drafts_go_through_our_kernel(
    make_engine: MakeEngine, random_target: Path, is_enabled: bool
) -> None:
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=8, extra_args={"redrafter": {"enabled": is_enabled}})
    llm = make_engine(random_target, TREE)
    with (
        patch.object(cpu, "packed_attention", wraps=cpu.packed_attention) as ours,
        patch.object(cpu, "packed_store", wraps=cpu.packed_store) as stored,
        patch.object(
            cpu_attn.ops, "cpu_attention_with_kv_cache", wraps=cpu_attn.ops.cpu_attention_with_kv_cache
        ) as theirs,
    ):
        generate(llm, random_prompts(2, VOCAB, longest=40), sampling)
    assert theirs.call_count > 0  # prompts
    assert stored.call_count > 0  # keys of all steps
    assert (ours.call_count > 0) == is_enabled


@pytest.mark.parametrize("best", ["amx", "neon"])
def test_the_cache_has_the_layout_that_our_kernel_reads(
    make_engine: MakeEngine, random_target: Path, best: str
) -> None:
    """Whatever vLLM would choose for the processor."""
    model_runner = runner(make_engine(random_target, TREE))
    ((group,),) = model_runner.attn_groups
    with patch.object(cpu_attn, "_get_attn_isa", return_value=best):
        builder = CpuTreeMetadataBuilder(
            group.kv_cache_spec, group.layer_names, model_runner.vllm_config, model_runner.device
        )
    layers = model_runner.vllm_config.compilation_config.static_forward_context
    assert {builder.causal.isa, *(layers[name].isa for name in group.layer_names)} == {"vec"}
