#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what imports what, as docs/design/imports.md: `python tools/draw_imports.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"redrafter_vllm": ROOT, "redrafter_training": ROOT / "training", "benchmarks": ROOT}
DRAWN = ("redrafter_vllm", "redrafter_vllm.integration", "redrafter_training", "benchmarks")
DOCUMENT = ROOT / "docs" / "design" / "imports.md"

Graph = dict[str, set[str]]  # from each name to those that it imports


def module_files() -> dict[str, Path]:
    """Name and file of every module; a package has the name of its folder."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((folder / package).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_names(file: Path) -> Iterator[str]:
    """Dotted names that `file` imports, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_graph() -> Graph:
    """Between all modules."""
    files = module_files()
    graph: Graph = {}
    for module, file in files.items():
        names = {name if name in files else name.rpartition(".")[0] for name in imported_names(file)}
        graph[module] = names & files.keys() - {module}
    return graph


def contents_graph(package: str, modules: Graph) -> Graph:
    """Between the modules and packages directly inside `package`."""

    def inside(module: str) -> str:
        return module.removeprefix(f"{package}.").partition(".")[0]

    graph: Graph = {}
    for module, imported in modules.items():
        if module.startswith(f"{package}."):
            names = {inside(other) for other in imported if other.startswith(f"{package}.")}
            graph.setdefault(inside(module), set()).update(names - {inside(module)})
    return graph


def document() -> str:
    """The text of docs/design/imports.md."""
    modules = module_graph()
    parts = [
        "# Imports",
        "Made by `python tools/draw_imports.py`. An arrow leads from what imports to what is imported; it is left\n"
        "out where a longer way leads to the same place. `tests/test_imports.py` checks that this file is current,\n"
        "that there is no circle, and that the layers are kept.",
    ]
    for package in DRAWN:
        graph = contents_graph(package, modules)
        arrows = [f"    {name} --> {imported}" for name in sorted(graph) for imported in sorted(_direct(name, graph))]
        parts += [f"## {package}", "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])]
    return "\n\n".join(parts) + "\n"


def _direct(name: str, graph: Graph) -> set[str]:
    return graph[name] - set().union(*(_reachable(imported, graph) for imported in graph[name]))


def _reachable(name: str, graph: Graph) -> set[str]:
    return graph[name].union(*(_reachable(imported, graph) for imported in graph[name]))


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
