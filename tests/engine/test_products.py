# SPDX-License-Identifier: Apache-2.0
"""How a target's layers are multiplied on a CPU: packed in bfloat16 engines with a drafter, and in no other one."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config import SpeculativeConfig
from vllm.model_executor.layers.linear import LinearBase

from redrafter_vllm.integration.method import PRODUCTS_SWITCH
from redrafter_vllm.integration.worker import adaptive_trees, cpu
from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, params, random_prompts, runner
from tests.engine.scripted import run_both, same_clear_choices
from tests.engine.test_targets import FAMILIES, save
from tests.mappings import asks_for_huge_pages, needs_huge_pages
from tests.models import VOCAB, save_random_drafter
from tests.ops.native import needs_packed_linear

pytestmark = [
    cpu_only,
    needs_packed_linear,
]
BF16 = {"dtype": "bfloat16"}


def are_packed(llm: Any) -> list[bool]:
    """Of the layers of the target: whether their weights are panels of [pairs, 32, 2]."""
    layers = [layer for layer in runner(llm).model.modules() if isinstance(layer, LinearBase)]
    assert len(layers) >= 8
    return [layer.weight.dim() == 4 and layer.weight.shape[2:] == (32, 2) for layer in layers]


def test_engines_of_one_process(make_engine: MakeEngine, random_target: Path) -> None:
    """Before, beside and after one with a drafter plain engines are vLLM's own."""
    assert not any(are_packed(make_engine(random_target, **BF16)))
    assert all(are_packed(make_engine(random_target, TREE, **BF16)))
    assert all(are_packed(make_engine(random_target, CHAIN, **BF16)))
    assert not any(are_packed(make_engine(random_target, max_num_seqs=3, **BF16)))
    assert not any(are_packed(make_engine(random_target, TREE)))  # float32


def test_the_drafter_is_packed(make_engine: MakeEngine, random_target: Path) -> None:
    drafter = runner(make_engine(random_target, TREE, **BF16)).speculator.drafter
    assert drafter._output_linear.layer.weight.shape[2:] == (32, 2)


def test_the_heap_is_moved_before_costs_are_measured(
    make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    measure = adaptive_trees.adapt_trees
    monkeypatch.setattr(cpu, "move_heap", lambda: done.append("moved"))
    monkeypatch.setattr(adaptive_trees, "adapt_trees", lambda runner: (done.append("measured"), measure(runner)))
    make_engine(random_target, TREE, max_num_seqs=5, **BF16)
    assert done == ["moved", "measured"]


@needs_huge_pages
def test_packed_weights_lie_on_huge_pages(make_engine: MakeEngine, random_target: Path) -> None:
    model = runner(make_engine(random_target, TREE, **BF16)).model
    layers = [layer for layer in model.modules() if isinstance(layer, LinearBase)]
    assert layers and all(asks_for_huge_pages(layer.weight.data_ptr()) for layer in layers)


def test_the_switch(make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRODUCTS_SWITCH, "vllm")
    assert not any(are_packed(make_engine(random_target, TREE, max_num_seqs=3, **BF16)))
    monkeypatch.setenv(PRODUCTS_SWITCH, "onednn")
    with pytest.raises(ValueError, match="REDRAFTER_CPU_PRODUCTS is 'onednn'; it can be packed or vllm"):
        make_engine(random_target, TREE, max_num_seqs=4, **BF16)


@pytest.mark.parametrize("options", [{}, {"enforce_eager": False}], ids=["eager", "compiled"])
def test_layers_with_a_bias(make_engine: MakeEngine, tmp_path: Path, options: dict[str, Any]) -> None:
    """As plain vLLM says, where its choice is clear: the number of rows changes what its products are rounded to."""
    target = save(FAMILIES["qwen2"], tmp_path / "target")
    save_random_drafter(target / "redrafter", hidden_size=128)
    plain, tree = make_engine(target, **BF16), make_engine(target, TREE, **BF16, **options)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=32, logprobs=2)
    assert same_clear_choices(*run_both(plain, tree, random_prompts(8, VOCAB, longest=120), sampling)) > 100


def test_compiled_graphs_are_kept_apart(
    make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM finds a kept graph by a hash, which is the same for its own methods that draft chains."""
    config = runner(make_engine(random_target, TREE, **BF16)).vllm_config
    own = config.compute_hash()
    assert config.compute_hash() == own
    with monkeypatch.context() as change:
        change.setenv(PRODUCTS_SWITCH, "vllm")
        assert config.compute_hash() != own
    with monkeypatch.context() as change:
        change.setattr(type(config.speculative_config), "compute_hash", SpeculativeConfig.compute_hash)
        assert config.compute_hash() != own
