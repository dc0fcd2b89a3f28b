# SPDX-License-Identifier: Apache-2.0
"""The packages of the training import in one direction, and no two files import each other."""

from graphlib import TopologicalSorter

import redrafter_training
from tests.imports import ImportGraph

ORDER = ("utils", "config", "distributed", "target", "data", "hidden_states", "trainer", "responses", "run")
GRAPH = ImportGraph.of(redrafter_training)


def test_folders_import_only_from_folders_below() -> None:
    assert sum(map(len, GRAPH.imports.values())) > 100
    assert GRAPH.upward(ORDER) == []


def test_no_circle_of_files() -> None:
    TopologicalSorter(GRAPH.imports).prepare()  # raises CycleError


def test_the_order_is_documented() -> None:
    assert ", ".join(ORDER) in (redrafter_training.__doc__ or "")
