# SPDX-License-Identifier: Apache-2.0
"""The attention of a GPU, served on the CPU: the Triton backend, vLLM's kernels and ours interpreted."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.attention import selector

from redrafter_vllm.integration.attention import select
from redrafter_vllm.integration.attention.triton import TritonTreeBackend, TritonTreeImpl
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, params, runner, tokens
from tests.engine.scripted import run_both
from tests.models import VOCAB

pytestmark = [pytest.mark.engine, cpu_only]


@pytest.fixture
def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines built under it use the kernels; vLLM remembers its choice of a backend per process."""
    monkeypatch.setenv(select.CPU_SWITCH, "triton")
    selector._cached_get_attn_backend.cache_clear()
    yield
    selector._cached_get_attn_backend.cache_clear()


def parts_of_steps(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, bool]]:
    """Collects, for each forward pass of a layer, whether it had causal requests and whether it had trees."""
    found: set[tuple[bool, bool]] = set()
    forward = TritonTreeImpl.forward

    def watch(self: Any, *args: Any, **options: Any) -> Any:
        metadata = args[5]
        found.add((metadata.causal is not None, metadata.trees is not None))
        return forward(self, *args, **options)

    monkeypatch.setattr(TritonTreeImpl, "forward", watch)
    return found


def test_tokens_are_those_of_plain_vllm(
    make_engine: MakeEngine, random_target: Path, kernels_on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and seeded, random trees, prompts cut into pieces beside other requests' trees."""
    shape = {"max_num_batched_tokens": 48, "max_num_seqs": 3}
    plain, tree = make_engine(random_target, **shape), make_engine(random_target, TREE, **shape)
    assert runner(tree).attn_groups[0][0].backend is TritonTreeBackend
    found = parts_of_steps(monkeypatch)
    rng = random.Random(3)
    # After the first step the second prompt still has a piece longer than any tree.
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (5, 100, 3)]
    sampling = [params(temperature=0.8 * (index % 2), seed=index, ignore_eos=True, max_tokens=8) for index in range(3)]
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    assert {(True, False), (True, True), (False, True)} <= found
