# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' folders import in one direction, and no two files import each other."""

from graphlib import TopologicalSorter

import benchmarks
from tests.imports import ImportGraph

COMMON = ("acceptance", "compare", "machine", "assets", "record", "engine_process", "cli")
ORDER = (*COMMON, "engines", "models", "serving", "training", "gpu_check", "demo")
GRAPH = ImportGraph.of(benchmarks)


def test_folders_import_only_from_folders_below() -> None:
    assert sum(map(len, GRAPH.imports.values())) > 50
    assert GRAPH.upward(ORDER) == []


def test_no_circle_of_files() -> None:
    TopologicalSorter(GRAPH.imports).prepare()  # raises CycleError
