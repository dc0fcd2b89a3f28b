# SPDX-License-Identifier: Apache-2.0
"""Whether a drafter is served in 8 bits where nobody asked: by measured times, and only where these already count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.integration.worker import weight_choice
from redrafter_vllm.integration.worker.drafter_loading import LayerProduct, pack_drafter
from redrafter_vllm.integration.worker.weight_choice import with_faster_weights
from redrafter_vllm.model.drafter import Drafter
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, runner, tokens, worker
from tests.models import VOCAB

pytestmark = cpu_only


@pytest.fixture
def drafter(make_engine: MakeEngine, random_target: Path) -> str:
    make_engine(random_target)  # for vLLM's process groups, which its layers need
    return str(random_target / "redrafter")


def config_of(dtype: torch.dtype = torch.bfloat16, workers: int = 1) -> Any:
    """A configuration of vLLM, as far as it is read here."""
    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=dtype)
    config.parallel_config = SimpleNamespace(world_size=workers)
    config.speculative_config = SimpleNamespace(num_speculative_tokens_per_batch_size=None)
    return config


def is_in_8_bits(packed: Any) -> bool:
    """By the method of its output layer: the weights themselves are in a layout of the kernel's."""
    return "Int8" in type(packed._output_linear.apply.__self__).__name__


@pytest.mark.parametrize(("in_8_bits", "chosen"), [(0.0085, "int8"), (0.0095, "none"), (0.02, "none")])
def test_int8_must_be_clearly_faster(
    drafter: str, monkeypatch: pytest.MonkeyPatch, in_8_bits: float, chosen: str
) -> None:
    """10 ms as they are."""
    monkeypatch.setattr(weight_choice, "_seconds", lambda packed, width: in_8_bits if is_in_8_bits(packed) else 0.01)
    drafting = DraftingConfig(beam_width=3)
    found = with_faster_weights(drafter, drafting, config_of())
    assert found == DraftingConfig(beam_width=3, drafter_quantization=chosen)
    packed = pack_drafter(Drafter.from_pretrained(drafter, dtype=torch.bfloat16), found, config_of())
    assert is_in_8_bits(packed) == (chosen == "int8")


def test_times_are_measured(drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    product = LayerProduct.__call__

    def counted(self: LayerProduct, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[-2])
        return product(self, x)

    monkeypatch.setattr(LayerProduct, "__call__", counted)
    chosen = with_faster_weights(drafter, DraftingConfig(beam_width=3), config_of()).drafter_quantization
    assert chosen in ("int8", "none")
    assert rows.count(3) >= 2 * weight_choice.REPEATS


@pytest.mark.parametrize(
    ("drafting", "config"),
    [
        (DraftingConfig(drafter_quantization="none"), config_of()),
        (DraftingConfig(drafter_quantization="int8"), config_of()),
        (DraftingConfig(adaptive=False), config_of()),
        (DraftingConfig(), config_of(torch.float32)),
        (DraftingConfig(), config_of(workers=2)),
    ],
    ids=["as they are", "int8", "fixed trees", "fp32", "two workers"],
)
def test_where_nothing_is_measured(drafting: DraftingConfig, config: Any) -> None:
    """The drafter, which is not there, is not even read."""
    assert with_faster_weights("/no/drafter", drafting, config) is drafting


@pytest.mark.parametrize("is_faster", [True, False])
def test_an_engine_keeps_what_it_chose(
    make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool
) -> None:
    """A drafter that it gets later is packed in the same way, whatever would be measured then."""
    in_8_bits = 0.001 if is_faster else 0.1
    monkeypatch.setattr(weight_choice, "_seconds", lambda packed, width: in_8_bits if is_in_8_bits(packed) else 0.01)
    tree = {**TREE, "adaptive": True}
    llm = make_engine(random_target, tree, dtype="bfloat16", max_num_seqs=4 + is_faster)
    assert is_in_8_bits(runner(llm).speculator.drafter) == is_faster
    prompts, sampling = random_prompts(2, VOCAB, longest=20), params(temperature=0.0, ignore_eos=True, max_tokens=8)
    before = tokens(generate(llm, prompts, sampling))
    worker(llm).reload_drafter(str(random_target / "redrafter"))
    assert is_in_8_bits(runner(llm).speculator.drafter) == is_faster
    assert [len(text) for (text,) in tokens(generate(llm, prompts, sampling))] == [len(text) for (text,) in before]
