# SPDX-License-Identifier: Apache-2.0
"""The packages of the training import in one direction, and no two files import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import redrafter_training

ROOT = Path(redrafter_training.__file__).parent
ORDER = ("utils", "config", "distributed", "target", "data", "hidden_states", "trainer", "responses", "run")
NAME = redrafter_training.__name__


def module_name(path: Path) -> str:
    parts = (NAME, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules) - {NAME, module_name(path)}


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}
IMPORTS = {module: imported(path, set(FILES)) for module, path in FILES.items()}


def level(module: str) -> int:
    folder = module.removeprefix(f"{NAME}.").split(".")[0]
    return ORDER.index(folder) if folder in ORDER else len(ORDER)


def test_folders_import_only_from_folders_below() -> None:
    assert sum(map(len, IMPORTS.values())) > 100
    assert [(m, other) for m, others in IMPORTS.items() for other in others if level(other) > level(m)] == []


def test_no_circle_of_files() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError


def test_the_order_is_documented() -> None:
    assert ", ".join(ORDER) in (redrafter_training.__doc__ or "")
