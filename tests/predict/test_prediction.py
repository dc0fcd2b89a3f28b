# SPDX-License-Identifier: Apache-2.0
"""Predictions by batch size: against sums by hand and a search through all budgets, and what must rise or fall."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.acceptance import Acceptance, find_acceptance
from redrafter_vllm.predict.gpu import Gpu, known_gpus
from redrafter_vllm.predict.prediction import Prediction, Setup, predict, smallest_parallel
from redrafter_vllm.predict.shapes import SHAPES, published_drafter
from redrafter_vllm.predict.work import drafting_round, seconds, target_step

H100 = known_gpus()["h100"]
PAPER = find_acceptance("paper")
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128]
CHAIN, TREE, ADAPTIVE = DraftingConfig(1, 4), DraftingConfig(4, 4, 16), DraftingConfig(4, 4, 16, adaptive=True)


def setup(target: str = "vicuna-7b", gpu: Gpu = H100, parallel: int = 1, context: int = 1000) -> Setup:
    shape = SHAPES[target]
    return Setup(gpu, parallel, shape, published_drafter(shape), context)


def of(
    tree: DraftingConfig | None, where: Setup, batches: list[int] = BATCHES, acceptance: Acceptance = PAPER
) -> list[Prediction]:
    found = predict(where, acceptance, [tree] if tree else [], batches)
    return [one for one in found if one.tree == tree]


def test_a_fixed_tree_by_hand() -> None:
    where = setup()
    (found,) = of(TREE, where, [8])
    target = seconds(target_step(where.shape, 8 * 17, 8, 1000, has_trees=True), H100) + 1.2e-3
    drafting = seconds(drafting_round(where.drafter, TREE, 8), H100)
    plain = seconds(target_step(where.shape, 8, 8, 1000), H100) + 1.2e-3
    assert found.nodes == 16
    assert found.tokens_per_step == pytest.approx(2.73)  # Table 4 of the paper
    assert found.target_ms == pytest.approx(1e3 * target)
    assert found.drafting_ms == pytest.approx(1e3 * drafting)
    assert found.tokens_per_second == pytest.approx(8 * 2.73 / (target + drafting))
    assert found.speedup == pytest.approx(2.73 * plain / (target + drafting))


def test_plain_decoding_at_batch_1_is_bound_by_memory() -> None:
    gpu = replace(H100, launch_us=0, step_ms=0, arithmetic_share=1, bandwidth_share=1)
    (found,) = of(None, setup(gpu=gpu, context=0), [1])
    bytes_read = 2 * (6_738_415_616 - 32_000 * 4096)
    assert found.target_ms == pytest.approx(1e3 * bytes_read / 3.35e12, rel=0.01)  # arithmetic adds 0.3 %


@pytest.mark.parametrize("target", ["vicuna-7b", "llama-3-8b"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_budget_is_the_best_of_all(target: str, batch: int) -> None:
    where = setup(target)
    (found,) = of(ADAPTIVE, where, [batch])
    best, number_of_best, length_of_best = 0.0, 0, 0
    whole = seconds(drafting_round(where.drafter, TREE, batch), H100)
    for length in range(1, 5):
        tree = DraftingConfig(4, length, min(16, 4 * length))
        nodes = np.sort(np.tile(PAPER.nodes(tree), batch))[::-1]
        short = seconds(drafting_round(where.drafter, tree, batch), H100)
        drafting = short + (whole - short) / 16  # one round of 16 is whole
        for number in range(len(nodes) + 1):
            step = seconds(target_step(where.shape, batch + number, batch, 1000, has_trees=True), H100) + 1.2e-3
            speed = (batch + nodes[:number].sum()) / (step + drafting)
            if speed > best:
                best, number_of_best, length_of_best = speed, number, length
    assert found.tokens_per_second == pytest.approx(best)
    assert found.nodes * batch == pytest.approx(number_of_best, abs=batch)  # equal nodes make near ties
    # The output layer of Llama 3's drafter is the larger one, and with many requests short rounds are best.
    shorter = {("vicuna-7b", 64): 3, ("llama-3-8b", 3): 3, ("llama-3-8b", 64): 2}
    assert length_of_best == shorter.get((target, batch), 4)


@pytest.mark.parametrize("target", ["vicuna-7b", "vicuna-13b", "llama-3-8b", "llama-3-70b"])
def test_trees_that_follow_the_load_never_lose(target: str) -> None:
    where = setup(target, parallel=smallest_parallel(H100, SHAPES[target]))
    adaptive, fixed = of(ADAPTIVE, where), of(TREE, where)
    for ours, theirs in zip(adaptive, fixed, strict=True):
        assert ours.speedup >= 1
        assert ours.speedup >= theirs.speedup - 1e-9
        assert ours.nodes <= theirs.nodes
    assert min(one.speedup for one in fixed) < min(one.speedup for one in adaptive)


def test_drafting_stops_where_nothing_is_accepted() -> None:
    useless = Acceptance({1: (0.01, 0.0, 0.0, 0.0)}, "test")
    for one in of(ADAPTIVE, setup(), acceptance=useless):
        assert (one.nodes, one.drafting_ms, one.tokens_per_step, one.speedup) == (0, 0, 1, 1)
    assert all(one.speedup < 1 for one in of(TREE, setup(), acceptance=useless))


@pytest.mark.parametrize("target", ["vicuna-7b", "llama-3-8b"])
@pytest.mark.parametrize("tree", [CHAIN, TREE, ADAPTIVE], ids=str)
def test_with_the_batch_steps_get_longer_and_the_speedup_smaller(target: str, tree: DraftingConfig) -> None:
    found = of(tree, setup(target))
    for smaller, larger in pairwise(found):
        assert larger.speedup < smaller.speedup
        assert larger.nodes <= smaller.nodes
        assert larger.tokens_per_second > smaller.tokens_per_second
        if not tree.adaptive:
            assert larger.target_ms > smaller.target_ms and larger.drafting_ms > smaller.drafting_ms


def test_a_longer_context_takes_longer_and_makes_rows_cheaper_beside_it() -> None:
    contexts = [0, 500, 2000, 8000]
    plain = [of(None, setup(context=context), [16])[0].target_ms for context in contexts]
    speedups = [of(TREE, setup(context=context), [16])[0].speedup for context in contexts]
    assert plain == sorted(plain) and plain[0] < plain[-1]
    # The cache is read once a step, however many rows: each token of a step has its share of that.
    assert speedups == sorted(speedups) and speedups[0] < speedups[-1]


@pytest.mark.parametrize(
    ("change", "is_faster"),
    [
        ({"bandwidth_tb_s": 6.7}, True),
        ({"tflops": 2000}, True),
        ({"launch_us": 5}, False),
        ({"step_ms": 3}, False),
    ],
)
def test_a_better_gpu_is_faster(change: dict[str, float], is_faster: bool) -> None:
    for tree in (None, TREE):
        (before,), (after,) = of(tree, setup(), [16]), of(tree, setup(gpu=replace(H100, **change)), [16])
        assert (after.tokens_per_second > before.tokens_per_second) is is_faster


def test_what_fits_in_memory() -> None:
    # 0.9 · 80 GB; weights and drafter 2 · (6,738,415,616 + 430 M); 1,000 tokens of 524,288 bytes for each request.
    fits = {one.batch: one.fits for one in of(None, setup(), [1, 100, 120])}
    assert fits == {1: True, 100: True, 120: False}


def test_gpus_that_a_target_needs() -> None:
    gpus = known_gpus()
    assert smallest_parallel(gpus["h100"], SHAPES["llama-3-8b"]) == 1
    assert smallest_parallel(gpus["h100"], SHAPES["llama-3-70b"]) == 4
    assert smallest_parallel(gpus["h200"], SHAPES["llama-3-70b"]) == 2
    assert smallest_parallel(gpus["l4"], SHAPES["llama-3-70b"]) == 8  # weights, but less room


def test_setups_that_cannot_be() -> None:
    # 2 · (70.55 + 2.77 billion): the drafter has ResBlocks of 16,384 squared and 128,256 · 16,384 numbers of output.
    with pytest.raises(ValueError, match=r"need 147 GB, 1 of these GPUs have 72: give more with --tensor-parallel"):
        setup("llama-3-70b")
    with pytest.raises(ValueError, match="32 attention heads cannot be split over 3 GPUs evenly"):
        setup(parallel=3)
    with pytest.raises(ValueError, match="at least 0 tokens, not -1"):
        setup(context=-1)
    other = published_drafter(SHAPES["vicuna-13b"])
    with pytest.raises(ValueError, match="hidden size of 5,120 and 32,000 tokens, the target has 4,096 and 32,000"):
        Setup(H100, 1, SHAPES["vicuna-7b"], other, 1000)
