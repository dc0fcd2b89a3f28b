# SPDX-License-Identifier: Apache-2.0
"""Facts about a version of vLLM, read from its sources by griffe, which does not run them."""

import ast
import importlib.util
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import griffe

INSTALLED = "installed"


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
    if place == INSTALLED:
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


@dataclass(frozen=True)
class Fact:
    """What a name is. Parameters that have a default end in `=`; starred ones keep their stars."""

    kind: str  # "missing", "function", "class" or "value"
    parameters: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()


class Source:
    """Finds names in one version's sources, through imports and base classes."""

    def __init__(self, tree: Tree) -> None:
        self.modules = _Modules(tree)

    def fact(self, target: str) -> Fact:
        """The fact of `module:name`, `module:Class.method` or `module:Class.attribute`."""
        try:
            found = self.modules.get_member(target.replace(":", "."))
            found = found.final_target if found.is_alias else found
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            return Fact("missing")
        if found.is_function:
            return Fact("function", parameters(found))
        return Fact("class", attributes=frozenset(found.all_members)) if found.is_class else Fact("value")

    def version(self) -> str:
        """The version that the sources name; empty where they name none."""
        try:
            value = self.modules.get_member("vllm._version.__version__").value
        except KeyError:
            return ""
        return value.strip("'\"") if isinstance(value, str) else ""


class _Modules(griffe.ModulesCollection):
    """Modules that are read when a name in them is looked up: griffe's loader reads all of vLLM, in 20 seconds."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._read: dict[str, griffe.Module | None] = {}
        self._extensions = griffe.Extensions(_InstanceAttributes())

    def get_member(self, key: str | Sequence[str]) -> Any:
        """The module `key`, or what it names in the innermost module on its path."""
        parts = key.split(".") if isinstance(key, str) else list(key)
        for depth in range(len(parts), 0, -1):
            if module := self._module(".".join(parts[:depth])):
                return module[parts[depth:]] if depth < len(parts) else module
        raise KeyError(key)

    def _module(self, name: str) -> griffe.Module | None:
        if name not in self._read:
            self._read[name] = None
            package, _, own_name = name.rpartition(".")
            path = name.replace(".", "/")
            for file in (f"{path}.py", f"{path}/__init__.py"):
                if (text := self._tree.read(file)) is not None:
                    self._read[name] = griffe.visit(
                        own_name,
                        Path(file),
                        text,
                        extensions=self._extensions,
                        parent=self._module(package) if package else None,
                        modules_collection=self,
                    )
        return self._read[name]


class _InstanceAttributes(griffe.Extension):
    """Adds all attributes that a class's methods assign to `self`; griffe itself reads single ones in `__init__`."""

    def on_class_members(self, *, node: Any, cls: griffe.Class, **_: Any) -> None:
        for inner in ast.walk(node):
            match inner:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()) if name not in cls.members:
                    cls.set_member(name, griffe.Attribute(name))


def parameters(function: griffe.Function) -> tuple[str, ...]:
    """Names in order; those with a default end in `=`, starred ones keep their stars."""
    names: list[str] = []
    for entry in function.parameters:
        match entry.kind:
            case griffe.ParameterKind.var_positional:
                names.append(f"*{entry.name}")
            case griffe.ParameterKind.var_keyword:
                names.append(f"**{entry.name}")
            case kind:
                if kind is griffe.ParameterKind.keyword_only and not any(name.startswith("*") for name in names):
                    names.append("*")
                names.append(entry.name + "=" * (entry.default is not None))
    return tuple(names)
