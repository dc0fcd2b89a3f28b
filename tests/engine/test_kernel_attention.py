# SPDX-License-Identifier: Apache-2.0
"""The attention of a GPU on the CPU: vLLM's kernels and ours interpreted, FlashAttention's replaced."""

import random
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.integration.attention.flash import FlashTreeBackend
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, params, runner, tokens
from tests.engine.scripted import run_both
from tests.engine.simulated_graphs import simulated_graphs
from tests.models import VOCAB

pytestmark = cpu_only

MAX_TOKENS = 6
SHAPE = {"max_num_batched_tokens": 48, "max_num_seqs": 3}


def parts_of_steps(impl: type[Any], monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, bool]]:
    """A set that collects, for each forward pass of a layer, whether it had causal requests, and trees."""
    found: set[tuple[bool, bool]] = set()
    forward = impl.forward

    def watch(self: Any, *args: Any, **options: Any) -> Any:
        metadata = args[5]
        found.add((metadata.causal is not None, metadata.trees is not None))
        return forward(self, *args, **options)

    monkeypatch.setattr(impl, "forward", watch)
    return found


def tree_engine(make_engine: MakeEngine, target: Path, backend: type[Any]) -> Any:
    # Different block sizes, which every backend supports, give the two backends separate engines.
    tree = make_engine(target, TREE, block_size=32 if backend is FlashTreeBackend else 16, **SHAPE)
    assert runner(tree).attn_groups[0][0].backend is backend
    return tree


def requests(*lengths: int) -> tuple[list[list[int]], list[Any]]:
    """Prompts of these lengths, alternately greedy and seeded."""
    rng = random.Random(3)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
    return prompts, [
        params(temperature=0.8 * (index % 2), seed=index, ignore_eos=True, max_tokens=MAX_TOKENS)
        for index in range(len(lengths))
    ]


def test_tokens_are_those_of_plain_vllm(
    make_engine: MakeEngine, random_target: Path, backend: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and seeded, random trees, chunked prompts beside other requests' trees."""
    plain, tree = make_engine(random_target, **SHAPE), tree_engine(make_engine, random_target, backend)
    found = parts_of_steps(backend.get_impl_cls(), monkeypatch)
    # After the first step the second prompt still has a chunk longer than any tree.
    expected, outputs = run_both(plain, tree, *requests(5, 66))
    assert tokens(outputs) == tokens(expected)
    assert {(True, False), (True, True), (False, True)} <= found


@pytest.mark.parametrize("backend", ["flash"], indirect=True)
def test_full_graphs_serve_the_same_tokens(make_engine: MakeEngine, random_target: Path, backend: type[Any]) -> None:
    """Two requests, one of them longer: a graph of size two runs both, and at the end one with padding."""
    plain, tree = make_engine(random_target, **SHAPE), tree_engine(make_engine, random_target, backend)
    prompts, sampling = requests(40, 4)
    sampling[1].max_tokens += 8
    with simulated_graphs(tree, [2]) as replays:
        expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    assert set(replays) == {(1, 2), (2, 2)}
