# SPDX-License-Identifier: Apache-2.0
"""Every drafting option reaches the worker, through vLLM's own configuration classes."""

from dataclasses import asdict, fields
from pathlib import Path

from redrafter_vllm.config import DraftingConfig
from tests.engine.conftest import MakeEngine
from tests.engine.generation import runner


def test_every_option_reaches_the_worker(make_engine: MakeEngine, random_target: Path) -> None:
    wanted = DraftingConfig(
        beam_width=3,
        beam_length=5,
        num_speculative_tokens=7,
        logits_top_k=20,
        drafter_quantization="int8",
        project_embedding=True,
        adaptive=False,
        prompt_lookup=False,
    )
    defaults = DraftingConfig()
    for field in fields(DraftingConfig):
        assert getattr(wanted, field.name) != getattr(defaults, field.name), f"{field.name} would not be noticed"
    llm = make_engine(random_target, {"method": "redrafter", **asdict(wanted)}, dtype="bfloat16")
    assert runner(llm).speculator.drafting == wanted
