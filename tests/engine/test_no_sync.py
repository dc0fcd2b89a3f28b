# SPDX-License-Identifier: Apache-2.0
"""No host synchronisation while drafting, verifying and compacting."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from redrafter_vllm.integration.model_state import RedrafterModelState
from redrafter_vllm.integration.speculator import RedrafterSpeculator
from redrafter_vllm.integration.step import DraftStep
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts
from tests.models import VOCAB
from tests.no_sync import forbid_host_sync

pytestmark = pytest.mark.engine


def trapped(owner: type, name: str, calls: list[str]) -> Any:
    original = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        with forbid_host_sync():
            return original(*args, **kwargs)

    return patch.object(owner, name, run)


def test_steps_do_not_read_back(make_engine: MakeEngine, random_target: Path) -> None:
    from redrafter_vllm.integration import sampler as sampler_module

    tree = make_engine(random_target, TREE)
    calls: list[str] = []
    walk = sampler_module.walk_drafts

    def trapped_walk(*args: Any) -> Any:
        calls.append("walk_drafts")
        with forbid_host_sync():
            return walk(*args)

    with (
        trapped(RedrafterSpeculator, "propose", calls),
        trapped(RedrafterModelState, "postprocess_state", calls),
        trapped(DraftStep, "set_rotary_positions", calls),
        trapped(DraftStep, "context_tokens", calls),
        patch.object(sampler_module, "walk_drafts", trapped_walk),
    ):
        generate(tree, random_prompts(3, VOCAB), params(temperature=0.0, ignore_eos=True, max_tokens=8))
    names = {"propose", "postprocess_state", "set_rotary_positions", "context_tokens", "walk_drafts"}
    assert set(calls) == names
