# SPDX-License-Identifier: Apache-2.0
"""Drafting rounds replayed from recordings: the tokens of plain vLLM, with inputs only in buffers of fixed address."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode

from redrafter_vllm.integration.worker.draft_graphs import DraftGraphs
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, runner, tokens
from tests.models import VOCAB
from tests.tape import tapes_for_graphs

SIZES = [1, 2, 4]


@contextmanager
def recorded(
    llm: Any, mode: CUDAGraphMode = CUDAGraphMode.FULL_AND_PIECEWISE, sizes: Sequence[int] = SIZES
) -> Iterator[RedrafterSpeculator]:
    """The speculator of `llm`, with rounds recorded as vLLM records them."""
    speculator: RedrafterSpeculator = runner(llm).speculator
    compilation = speculator.vllm_config.compilation_config
    with (
        tapes_for_graphs(),
        patch.object(compilation, "cudagraph_capture_sizes", list(sizes)),
        patch.object(compilation, "max_cudagraph_capture_size", max(sizes)),
    ):
        speculator.init_cudagraph_manager(mode)
        speculator.capture()
    try:
        yield speculator
    finally:
        speculator.init_cudagraph_manager(CUDAGraphMode.NONE)


@contextmanager
def poisoned_inputs(speculator: RedrafterSpeculator) -> Iterator[list[int]]:
    """Overwrite a round's inputs and results between rounds; yields a list of the rounds' sizes."""
    sizes: list[int] = []
    fill, propose = speculator.buffers.fill, speculator.propose

    def remember(size: int, *args: Any) -> None:
        sizes.append(size)
        fill(size, *args)

    def spoil(*args: Any, **kwargs: Any) -> torch.Tensor:
        drafted = propose(*args, **kwargs).clone()
        for buffer in (*speculator.buffers.inputs, speculator.buffers.draft_tokens):
            buffer.fill_(float("nan") if buffer.is_floating_point() else True if buffer.dtype == torch.bool else -1)
        return drafted

    with patch.object(speculator.buffers, "fill", remember), patch.object(speculator, "propose", spoil):
        yield sizes


@pytest.mark.parametrize("num_prompts", [3, 7])
def test_replays_draw_what_plain_rounds_draw(make_engine: MakeEngine, asset: Path, num_prompts: int) -> None:
    """With 3 requests and with 7, more than any recording has; batches shrink as requests end at different lengths."""
    prompts = random_prompts(num_prompts, 2048, longest=60)
    each = [params(temperature=0.0, ignore_eos=True, max_tokens=6 + 14 * index) for index in range(num_prompts)]
    expected = tokens(generate(make_engine(asset), prompts, each))
    tree = make_engine(asset, TREE)
    plain_rounds = rounds_of(tree, prompts, each)
    with recorded(tree) as speculator, poisoned_inputs(speculator) as sizes:
        assert speculator.graphs is not None
        outputs = tokens(generate(tree, prompts, each))
        replays = {desc.num_reqs: tape.replays for desc, tape in speculator.graphs.graphs.items()}
    assert outputs == expected
    # The same trees were drawn: as many rounds as without recordings.
    assert len(sizes) == plain_rounds
    assert {size for size in sizes if size <= max(SIZES)} <= set(SIZES)
    assert sum(replays.values()) == sum(size <= max(SIZES) for size in sizes)
    assert replays[4] and sum(count > 0 for count in replays.values()) > 1
    assert (max(sizes) > max(SIZES)) == (num_prompts > max(SIZES))


def rounds_of(llm: Any, prompts: list[list[int]], each: list[Any]) -> int:
    speculator: RedrafterSpeculator = runner(llm).speculator
    with poisoned_inputs(speculator) as sizes:
        generate(llm, prompts, each)
    return len(sizes)


def test_recorded_sizes_are_those_of_vllm(make_engine: MakeEngine, random_target: Path) -> None:
    llm = make_engine(random_target, TREE)
    with recorded(llm, CUDAGraphMode.PIECEWISE) as speculator:
        assert speculator.graphs is not None
        found = {n: speculator.graphs.of(n) for n in range(1, 9)}
        sizes = {n: None if desc is None else desc.num_tokens for n, desc in found.items()}
    assert sizes == {1: 1, 2: 2, 3: 4, 4: 4, 5: None, 6: None, 7: None, 8: None}


def test_no_graphs_where_they_are_switched_off(make_engine: MakeEngine, random_target: Path) -> None:
    with recorded(make_engine(random_target, TREE), CUDAGraphMode.NONE) as speculator:
        assert speculator.graphs is not None
        assert not speculator.graphs.graphs
        assert speculator.graphs.of(1) is None


def test_vllm_can_drop_what_it_recorded_to_measure_memory(make_engine: MakeEngine, random_target: Path) -> None:
    """It finds graph managers among the speculator's attributes and sets them to None."""
    llm = make_engine(random_target, TREE)
    with recorded(llm) as speculator:
        names = [name for name, value in vars(speculator).items() if isinstance(value, DraftGraphs)]
        assert names == ["graphs"]
        speculator.graphs = None
        generate(llm, random_prompts(1, VOCAB), params(temperature=0.0, max_tokens=4))


def test_recording_leaves_the_rows_alone(make_engine: MakeEngine, random_target: Path) -> None:
    llm = make_engine(random_target, TREE)
    rows = runner(llm).speculator.rows
    rows.trees.tokens[: rows.padding_row].fill_(5)
    rows.trees.num_nodes[: rows.padding_row].fill_(3)
    with recorded(llm):
        assert rows.trees.tokens[: rows.padding_row].eq(5).all()
        assert rows.trees.num_nodes[: rows.padding_row].eq(3).all()
    rows.trees.num_nodes.zero_()


def test_shorter_rounds_are_recorded_and_dropped_with_the_whole_ones(
    make_engine: MakeEngine, random_target: Path
) -> None:
    """Only trees that adapt have them; elastic expert parallelism drops all before it records again."""
    fixed, adaptive = make_engine(random_target, TREE), make_engine(random_target, {**TREE, "adaptive": True})
    with recorded(fixed) as speculator:
        assert speculator.graphs is not None and not speculator.graphs.shorter
    with recorded(adaptive) as speculator:
        graphs = speculator.graphs
        assert graphs is not None and list(graphs.shorter) == [1, 2, 3]
        every = [graphs, *graphs.shorter.values()]
        assert all(len(each.graphs) == len(SIZES) for each in every)
        graphs.release_graphs()
        assert not any(each.graphs for each in every)
