# SPDX-License-Identifier: Apache-2.0
"""Estimates of nodes: by hand, and kernels against references."""

import math
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops.survival import NUM_SUMS, Estimates, Sums, reference
from tests.ops.devices import DEVICE, HAS_GPU, assert_equal, poisoned, runs_kernels
from tests.ops.native import needs_compiler
from tests.ops.poison import poison_empty

# Requests, beams, steps, nodes, rows.
SIZES = [(1, 1, 1, 1, 2), (3, 4, 4, 16, 5), (2, 5, 3, 7, 9), (4, 33, 2, 66, 4), (2, 3, 12, 36, 3), (0, 4, 4, 16, 3)]


@pytest.fixture(
    params=[pytest.param("kernel", marks=runs_kernels), pytest.param("native", marks=needs_compiler)], name="kernel"
)
def fixture_kernel(request: pytest.FixtureRequest) -> ModuleType:
    """The kernels in Triton, and those in C++ where tensors are on a CPU."""
    if request.param == "native" and HAS_GPU:
        pytest.skip("tensors are on the GPU")
    return import_module(f"redrafter_vllm.ops.survival.{request.param}")


class Round:
    """Random beams, trees of some of them, and estimates of all rows."""

    def __init__(self, batch: int, width: int, length: int, nodes: int, num_rows: int, *, copies: bool = False) -> None:
        generator = torch.Generator().manual_seed(width + length)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        # Copies may be longer than the beams: fewer kinds than steps.
        kinds = max(1, length - 1) + 1 if copies else length
        self.estimates = Estimates(
            torch.tensor([0.7], device=DEVICE),
            numbers(kinds).to(DEVICE),
            numbers(num_rows).to(DEVICE),
            torch.randint(kinds, (num_rows, nodes), generator=generator).to(DEVICE),
            numbers(num_rows, nodes).to(DEVICE),
            -numbers(num_rows, nodes).abs().cumsum(1).to(DEVICE),
            numbers(num_rows, NUM_SUMS, kinds).to(DEVICE),
            copies,
        )
        self.parents = torch.randint(width, (batch, length, width), generator=generator)
        # Among them tokens that are certain, nearly so, impossible, and below an impossible one.
        own = torch.rand(batch, length, width, generator=generator).log()
        sorts = torch.randint(8, own.shape, generator=generator)
        own = own.where(sorts > 2, torch.tensor([0.0, -1e-4, -torch.inf])[sorts.clamp(max=2)])
        log_probs = own.clone()
        for step in range(1, length):
            log_probs[:, step] += log_probs[:, step - 1].gather(1, self.parents[:, step])
        self.log_probs = log_probs.to(DEVICE)
        self.parents = self.parents.to(DEVICE)
        self.rows = torch.randperm(num_rows, generator=generator)[:batch].to(DEVICE)
        order = torch.rand(batch, length * width, generator=generator).argsort(1)[:, :nodes].contiguous()
        self.beams = order.to(DEVICE)
        self.num_nodes = torch.randint(1, nodes + 1, (batch,), generator=generator).to(DEVICE)
        self.node_budget = torch.randint(nodes + 1, (batch,), generator=generator).to(DEVICE)
        parents = (torch.rand(batch, nodes, generator=generator) * (torch.arange(nodes) + 1)).long() - 1
        self.node_parents = parents.to(DEVICE)
        self.valid = (torch.rand(batch, nodes, generator=generator) < 0.8).to(DEVICE)
        path = torch.randint(nodes, (batch, length), generator=generator)
        ends = torch.randint(length + 1, (batch, 1), generator=generator)
        self.path = path.where(torch.arange(length) < ends, -1).to(DEVICE)

    def copied(self) -> Estimates:
        return Estimates(*(each.clone() if isinstance(each, Tensor) else each for each in self.estimates))


def tensors(estimates: Estimates) -> list[Tensor]:
    return [each for each in estimates if isinstance(each, Tensor)]


def assert_close(mine: Estimates, wanted: Estimates) -> None:
    for name, one, other in zip(Estimates._fields, tensors(mine), tensors(wanted), strict=False):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ranking(
    kernel: ModuleType, size: tuple[int, int, int, int, int], copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Round(*size, copies=copies)
    arguments = drawn.log_probs, drawn.parents, drawn.rows
    estimates = drawn.copied()
    with monkeypatch.context() as patches:
        poison_empty(patches)
        mine = kernel.rank_beams(estimates, *arguments)
    for one, other in zip(mine, reference.rank_beams(drawn.estimates, *arguments), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    for one, other in zip(tensors(estimates), tensors(drawn.estimates), strict=True):
        assert_equal(one, other)
    for step in range(1, size[2]):
        assert (mine[1][:, step] <= mine[1][:, step - 1].gather(1, drawn.parents[:, step])).all()


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_keeping(kernel: ModuleType, size: tuple[int, int, int, int, int], copies: bool) -> None:
    """Survivals that fall along a tree, slots of minus infinity behind it, and a request more that was ranked alone."""
    drawn = Round(*size, copies=copies)
    log_odds, survival = reference.rank_beams(drawn.estimates, drawn.log_probs, drawn.parents, drawn.rows)
    survival = survival.flatten(1).gather(1, drawn.beams).sort(1, descending=True).values
    behind = torch.arange(size[3], device=DEVICE) >= drawn.num_nodes[:, None]
    survival = survival.masked_fill(behind, -torch.inf)
    log_odds = torch.cat([log_odds, log_odds.new_full((1, *log_odds.shape[1:]), math.nan)])
    kept = log_odds, drawn.beams, survival, drawn.num_nodes, drawn.node_budget, drawn.rows
    mine, wanted = drawn.copied(), drawn.copied()
    found, expected = (poisoned(size[0], size[3], dtype=torch.float32) for _ in range(2))
    kernel.keep_tree(mine, *kept, found)
    reference.keep_tree(wanted, *kept, expected)
    assert_close(mine, wanted)
    torch.testing.assert_close(found, expected)
    assert (found <= 1).all() and (found.cumprod(1).diff(dim=1) <= 0).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_grading(kernel: ModuleType, size: tuple[int, int, int, int, int]) -> None:
    drawn = Round(*size)
    drawn.estimates.log_survival[:, size[3] // 2 + 1 :] = -torch.inf
    step = drawn.rows, drawn.node_parents, drawn.valid, drawn.path
    mine, wanted = drawn.copied(), drawn.copied()
    kernel.grade_nodes(mine, *step)
    reference.grade_nodes(wanted, *step)
    assert_close(mine, wanted)
    # A second launch gives the same bits: ranks of a parallel target must agree.
    again = drawn.copied()
    kernel.grade_nodes(again, *step)
    for one, other in zip(tensors(mine), tensors(again), strict=True):
        assert_equal(one, other)


def test_grades_by_hand() -> None:
    """Node 0 is accepted, its child 1 is not, 2 is under a refused node; 3 has no row. Two requests keep apart."""
    estimates = Estimates(
        torch.ones(1),
        torch.zeros(2),
        torch.zeros(3),
        torch.tensor([[0] * 4, [0, 1, 1, 0], [0] * 4]),
        torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0], [0.5] * 4]),
        torch.tensor([[0.0] * 4, [0.5, 0.25, 0.1, 0.4], [0.9, 0.9, 0.9, 0.9]]).log(),
        torch.zeros(3, NUM_SUMS, 2),
    )
    parents = torch.tensor([[-1, 0, 3, -1], [-1, -1, -1, -1]])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    reference.grade_nodes(estimates, torch.tensor([1, 2]), parents, valid, torch.tensor([[0, -1], [-1, -1]]))
    first, second = (Sums(*estimates.sums[row]) for row in (1, 2))
    assert first.graded.tolist() == [1, 1] and second.graded.tolist() == [1, 0]
    assert first.intercept_gradient.tolist() == pytest.approx([0.5, -0.5])
    assert first.slope_gradient.tolist() == pytest.approx([0.5, -1.0])
    assert first.intercept_intercept.tolist() == pytest.approx([0.25, 0.25])
    assert first.slope_intercept.tolist() == pytest.approx([0.25, 0.5])
    assert first.slope_slope.tolist() == pytest.approx([0.25, 1.0])
    assert second.intercept_gradient.tolist() == pytest.approx([-0.9, 0.0])
    assert estimates.offsets.tolist() == pytest.approx([0.0, 0.0, -0.2 * 0.9])
    assert not estimates.sums[0].any()


def test_certain_tokens_are_cut() -> None:
    log_probs = torch.tensor([[[0.0, -torch.inf, math.log(0.5)]]])
    assert reference.log_odds_given_parent(log_probs, torch.zeros(1, 1, 3, dtype=torch.int64)).tolist() == [
        [[10.0, -10.0, 0.0]]
    ]


def test_a_copy_has_an_intercept_and_no_slope_of_its_own() -> None:
    """Two beams with slope 0.5 and a copy, at two steps, of which the second has the copy alone."""
    half, odds = math.log(0.5), math.log(3)
    estimates = Estimates(
        torch.tensor([0.5]),
        torch.tensor([0.25, -1.0]),
        torch.zeros(1),
        torch.zeros(1, 4, dtype=torch.int64),
        torch.zeros(1, 4),
        torch.zeros(1, 4),
        torch.zeros(1, NUM_SUMS, 2),
        copies=True,
    )
    log_probs = torch.tensor([[[half, -torch.inf, math.log(0.75)], [-torch.inf, -torch.inf, math.log(0.75) + half]]])
    parents = torch.tensor([[[0, 0, 0], [0, 1, 2]]])
    row = torch.tensor([0])
    log_odds, survival = reference.rank_beams(estimates, log_probs, parents, row)
    log_sigmoid = torch.nn.functional.logsigmoid
    first, copy, further = log_sigmoid(torch.tensor([0.25, odds - 1, 0 - 1])).tolist()
    assert survival.flatten().tolist() == pytest.approx([first, -math.inf, copy, -math.inf, -math.inf, copy + further])
    nodes = torch.tensor([[2, 0, 5, 0]])
    kept = survival.flatten(1).gather(1, nodes)
    budget = torch.tensor([3])
    reference.keep_tree(estimates, log_odds, nodes, kept, budget, budget, row, torch.zeros(1, 4))
    assert estimates.kinds[0, :3].tolist() == [1, 0, 1]
    # The fit of the slope does not see copies: their x is 0.
    assert estimates.log_odds[0, :3].tolist() == pytest.approx([0.0, 0.0, 0.0])
