# SPDX-License-Identifier: Apache-2.0
"""Trees cut short by the scheduler: small token budgets and node budgets that fall with the batch."""

from pathlib import Path

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, runner
from tests.engine.scripted import assert_identical

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("budget", [8, 20, 50])
def test_small_token_budgets(make_engine: MakeEngine, random_target: Path, budget: int) -> None:
    options = {"max_num_batched_tokens": budget, "max_num_seqs": 8}
    assert_identical(make_engine(random_target), make_engine(random_target, TREE, **options), count=12)


def test_node_budget_falls_with_the_batch(make_engine: MakeEngine, random_target: Path) -> None:
    schedule = [(1, 2, 16), (3, 4, 5), (5, 8, 0)]
    tree = make_engine(random_target, {**TREE, "num_speculative_tokens_per_batch_size": schedule})
    assert_identical(make_engine(random_target), tree, count=8)
    assert_identical(make_engine(random_target), tree, count=3)
    assert not runner(tree).speculator.rows.num_nodes.gt(16).any()


@pytest.mark.parametrize("slots", [1, 3])
def test_fewer_slots_than_a_beam(make_engine: MakeEngine, random_target: Path, slots: int) -> None:
    tree = make_engine(random_target, {**TREE, "num_speculative_tokens": slots})
    assert_identical(make_engine(random_target), tree)
