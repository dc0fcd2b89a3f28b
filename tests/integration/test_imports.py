# SPDX-License-Identifier: Apache-2.0
"""The package imports in one direction, and code of one process of vLLM does not import that of another."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import redrafter_vllm

PACKAGE = Path(redrafter_vllm.__file__).parent
NAME = "redrafter_vllm.integration"
# The folders that each folder may import, beside the files directly in `integration`.
MAY_IMPORT = {
    "vllm_interface": set(),
    "attention": {"vllm_interface"},
    "scheduler": set(),
    "frontend": {"attention"},
    "worker": {"attention", "vllm_interface"},
    "patches": {"vllm_interface", "attention", "scheduler", "frontend", "worker"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & FILES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & FILES.keys()) - {module}


IMPORTS = {module: imported(module) for module in FILES}


def folder(module: str) -> str | None:
    """The folder of `integration` with this module; None for files directly in it and for other packages."""
    first = module.removeprefix(f"{NAME}.").split(".")[0]
    return first if module.startswith(NAME) and first in MAY_IMPORT else None


def test_no_two_files_import_each_other() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError


def test_integration_folders_import_only_those_below() -> None:
    assert {path.name for path in (PACKAGE / "integration").iterdir() if (path / "__init__.py").is_file()} == {
        *MAY_IMPORT
    }
    wrong = [
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if module.startswith(NAME) and folder(other) not in (None, folder(module))
        if folder(other) not in MAY_IMPORT.get(folder(module) or "", set())
    ]
    assert wrong == []


def test_only_the_plugin_imports_integration() -> None:
    """And the doctor its lists of versions and names, which import nothing of vLLM, and why trees do not adapt."""
    used = {module: {other for other in others if other.startswith(NAME)} for module, others in IMPORTS.items()}
    outside = {module: others for module, others in used.items() if others and not module.startswith(NAME)}
    lists = (f"{NAME}.versions", f"{NAME}.vllm_interface", f"{NAME}.worker.adaptive_report")
    assert "redrafter_vllm.plugin" in outside
    for module in outside.keys() - {"redrafter_vllm.plugin"}:
        assert module.startswith("redrafter_vllm.cli."), module
        assert all(other.startswith(lists) for other in outside[module]), module
