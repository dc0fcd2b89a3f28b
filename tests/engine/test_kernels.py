# SPDX-License-Identifier: Apache-2.0
"""Serving with interpreted kernels instead of their references, as REDRAFTER_KERNELS=1 does on a CPU."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from redrafter_vllm.ops import dispatch
from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, generate, params, random_prompts, tokens
from tests.engine.scripted import run_both
from tests.models import VOCAB
from tests.ops.devices import HAS_GPU, runs_kernels

pytestmark = runs_kernels

# Launchers that a step with trees must call; otherwise the reference has run.
LAUNCHERS = {
    "beam_step": "beam_step",
    "draft_inputs": "draft_inputs",
    "first_residual": "residual",
    "grow_beams": "grow_beams",
    "kv_compact": "kv_compact",
    "prefix_tree": "prefix_tree",
    "residual": "residual",
    "round_inputs": "draft_round",
    "store_trees": "draft_round",
    "tokens_and_state": "recurrence",
    "tree_verify": "tree_verify",
}


@contextmanager
def kernels() -> Iterator[dict[str, int]]:
    """Use kernels everywhere and, if interpreted, check them; yields the number of calls of each launcher."""
    calls = dict.fromkeys(LAUNCHERS, 0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(dispatch, "_ALWAYS", True))
        if not HAS_GPU:
            from tests.ops.sanitizer import sanitized

            stack.enter_context(sanitized(of="redrafter_vllm"))

        def count(launcher: str, op: str) -> None:
            module = importlib.import_module(f"redrafter_vllm.ops.{op}.kernel")
            original = getattr(module, launcher)

            def counted(*args: Any, **kwargs: Any) -> Any:
                calls[launcher] += 1
                return original(*args, **kwargs)

            stack.enter_context(patch.object(module, launcher, counted))

        for launcher, op in LAUNCHERS.items():
            count(launcher, op)
        yield calls


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "seeded"])
def test_trees_by_kernels(make_engine: MakeEngine, asset: Path, sampling: dict[str, Any]) -> None:
    """With the trained drafter, so that paths are accepted and entries move."""
    prompts = random_prompts(3, 2048, longest=60)
    each = params(ignore_eos=True, max_tokens=12, **sampling)
    expected = tokens(generate(make_engine(asset), prompts, each))
    tree = make_engine(asset, TREE)
    with kernels() as calls:
        assert tokens(generate(tree, prompts, each)) == expected
    assert all(calls.values()), calls


def test_random_trees_by_kernels(make_engine: MakeEngine, random_target: Path) -> None:
    """Every shape of acceptance: trees around the true continuation."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=24)
    with kernels() as calls:
        expected, outputs = run_both(plain, tree, random_prompts(5, VOCAB), sampling)
    assert tokens(outputs) == tokens(expected)
    assert calls["kv_compact"] and calls["tree_verify"] and calls["draft_inputs"] and calls["store_trees"]


def test_chains_by_kernels(make_engine: MakeEngine, random_target: Path) -> None:
    prompts = random_prompts(3, VOCAB, longest=60)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=8)
    expected = tokens(generate(make_engine(random_target), prompts, sampling))
    chain = make_engine(random_target, CHAIN)
    with kernels() as calls:
        assert tokens(generate(chain, prompts, sampling)) == expected
    assert all(count for op, count in calls.items() if op not in ("kv_compact", "residual")), calls


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when the module is imported: kernels on a CPU, then references."""
    tensor = torch.zeros(1)
    try:
        monkeypatch.setenv("REDRAFTER_KERNELS", "1")
        assert importlib.reload(dispatch).use_kernel([tensor])
    finally:
        monkeypatch.delenv("REDRAFTER_KERNELS")
        importlib.reload(dispatch)
    assert not dispatch.use_kernel([tensor])
