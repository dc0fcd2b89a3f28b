# SPDX-License-Identifier: Apache-2.0
"""Facts about a version of vLLM, read from its sources without running them."""

import ast
import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Tree(Protocol):
    """A place with sources of vLLM."""

    def read(self, path: str) -> str | None:
        """Text of a file such as `vllm/config/__init__.py`; None where there is none."""


class Directory:
    """A directory that holds the package `vllm`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        file = self.root / path
        return file.read_text(encoding="utf-8") if file.is_file() else None


class Wheel:
    """A wheel; only the files that are read are unpacked, in memory."""

    def __init__(self, file: Path) -> None:
        self.archive = zipfile.ZipFile(file)
        self.names = set(self.archive.namelist())

    def read(self, path: str) -> str | None:
        return self.archive.read(path).decode("utf-8") if path in self.names else None


def open_tree(place: str) -> Tree:
    """`installed`, a wheel, or a directory that holds `vllm/` or is it.

    Raises:
        FileNotFoundError: There is no vLLM there.
    """
    if place == "installed":
        spec = importlib.util.find_spec("vllm")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("no vllm is installed in this environment")
        return Directory(Path(spec.origin).parents[1])
    path = Path(place)
    if path.suffix == ".whl":
        return Wheel(path)
    root = path.parent if path.name == "vllm" and (path / "__init__.py").is_file() else path
    if (root / "vllm" / "__init__.py").is_file():
        return Directory(root)
    raise FileNotFoundError(f"{place} is neither a wheel nor a directory with vLLM's sources")


class Found(NamedTuple):
    """A definition and the module that contains it."""

    module: str
    node: ast.stmt


@dataclass(frozen=True)
class Fact:
    """What a name is. Parameters that have a default end in `=`; starred ones keep their stars."""

    kind: str  # "missing", "function", "class" or "value"
    parameters: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()


class Source:
    """Finds names in one version's sources, through imports and base classes."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._modules: dict[str, tuple[ast.Module, bool] | None] = {}

    def fact(self, target: str) -> Fact:
        """The fact of `module:name`, `module:Class.method` or `module:Class.attribute`."""
        module, _, path = target.partition(":")
        name, _, member = path.partition(".")
        found = self._find(module, name)
        if found is None:
            return Fact("value" if not member and self._parse(f"{module}.{name}") else "missing")
        if member:
            if not isinstance(found.node, ast.ClassDef):
                return Fact("missing")
            for owner in self._lineage(found):
                for node in owner.node.body:
                    if isinstance(node, Function) and node.name == member:
                        return Fact("function", parameters(node))
            return Fact("value" if member in self._attributes(found) else "missing")
        if isinstance(found.node, Function):
            return Fact("function", parameters(found.node))
        if isinstance(found.node, ast.ClassDef):
            return Fact("class", attributes=frozenset(self._attributes(found)))
        return Fact("value")

    def version(self) -> str:
        """The version that the sources name; empty where they name none."""
        text = self.tree.read("vllm/_version.py") or ""
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                if names & {"__version__", "version"}:
                    return str(node.value.value)
        return ""

    def _parse(self, module: str) -> tuple[ast.Module, bool] | None:
        """The module's tree, and whether it is a package."""
        if module not in self._modules:
            path = module.replace(".", "/")
            self._modules[module] = None
            for file, is_package in ((f"{path}.py", False), (f"{path}/__init__.py", True)):
                text = self.tree.read(file)
                if text is not None:
                    self._modules[module] = ast.parse(text), is_package
        return self._modules[module]

    def _find(self, module: str, name: str) -> Found | None:
        parsed = self._parse(module)
        if parsed is None:
            return None
        for node in _statements(parsed[0].body):
            if isinstance(node, (*Function.__args__, ast.ClassDef)) and node.name == name:  # type: ignore[attr-defined]
                return Found(module, node)
            if name in _assigned(node):
                return Found(module, node)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        origin = _origin(module, parsed[1], node)
                        found = self._find(origin, alias.name)
                        # A module may be imported by name, too.
                        return found or (Found(module, node) if self._parse(f"{origin}.{alias.name}") else None)
        return None

    def _lineage(self, found: Found) -> Iterator["_Class"]:
        """The class and those of its bases that are defined in vLLM, nearest first."""
        if not isinstance(found.node, ast.ClassDef):
            return
        yield _Class(found.module, found.node)
        for base in found.node.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(inner, ast.Name) and (next_found := self._find(found.module, inner.id)):
                yield from self._lineage(next_found)

    def _attributes(self, found: Found) -> set[str]:
        names: set[str] = set()
        for owner in self._lineage(found):
            for node in owner.node.body:
                names |= _assigned(node)
                if isinstance(node, Function):
                    names.add(node.name)
                    names |= {inner.attr for inner in ast.walk(node) if _sets_on_self(inner)}  # type: ignore[attr-defined]
        return names


class _Class(NamedTuple):
    module: str
    node: ast.ClassDef


def parameters(node: Function) -> tuple[str, ...]:
    """Names in order; those with a default end in `=`, starred ones keep their stars."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    required = len(positional) - len(spec.defaults)
    names = [arg.arg + "=" * (index >= required) for index, arg in enumerate(positional)]
    if spec.vararg:
        names.append(f"*{spec.vararg.arg}")
    elif spec.kwonlyargs:
        names.append("*")
    names += [
        arg.arg + "=" * (default is not None) for arg, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    ]
    if spec.kwarg:
        names.append(f"**{spec.kwarg.arg}")
    return tuple(names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` as well."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *(child for handler in node.handlers for child in handler.body)])


def _assigned(node: ast.stmt) -> set[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _sets_on_self(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _origin(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])
