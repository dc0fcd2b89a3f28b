# SPDX-License-Identifier: Apache-2.0
"""The imports among the files of a package."""

import ast
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class ImportGraph:
    """The modules that each module of a package imports, inside functions too."""

    name: str
    imports: dict[str, set[str]]

    @classmethod
    def of(cls, package: ModuleType) -> "ImportGraph":
        root = Path(package.__file__ or "").parent
        files = {_module_name(package.__name__, path.relative_to(root)): path for path in root.rglob("*.py")}
        return cls(
            package.__name__,
            {module: _imported(path, set(files)) - {package.__name__, module} for module, path in files.items()},
        )

    def upward(self, order: tuple[str, ...]) -> list[tuple[str, str]]:
        """Imports from a lower folder, or file, into a higher one; those that `order` lacks are above all others."""

        def level(module: str) -> int:
            part = module.removeprefix(f"{self.name}.").split(".")[0]
            return order.index(part) if part in order else len(order)

        return [(m, other) for m, others in self.imports.items() for other in others if level(other) > level(m)]


def _module_name(package: str, path: Path) -> str:
    return ".".join((package, *path.with_suffix("").parts)).removesuffix(".__init__")


def _imported(path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules
