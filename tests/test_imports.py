# SPDX-License-Identifier: Apache-2.0
"""The packages of the plugin import in one direction, and no two files import each other."""

from graphlib import TopologicalSorter

import redrafter_vllm
from tests.imports import ImportGraph

ORDER = ("utils", "config", "request_settings", "checkpoint", "ops", "model", "drafting", "integration")
GRAPH = ImportGraph.of(redrafter_vllm)


def test_folders_import_only_from_folders_below() -> None:
    assert sum(map(len, GRAPH.imports.values())) > 100
    assert GRAPH.upward(ORDER) == []


def test_ops_know_no_drafter() -> None:
    imported = {other for module, others in GRAPH.imports.items() if ".ops." in module for other in others}
    assert {other.split(".")[1] for other in imported} == {"ops"}


def test_no_circle_of_files() -> None:
    TopologicalSorter(GRAPH.imports).prepare()  # raises CycleError
