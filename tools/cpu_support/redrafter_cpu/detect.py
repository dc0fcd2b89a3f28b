# SPDX-License-Identifier: Apache-2.0
"""Whether the interpreted backend may be active in this environment.

Nothing here imports torch or triton, as Triton calls this while it is being imported.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

BACKEND_GROUP = "triton.backends"
BACKEND_NAME = "cpu"
OUR_BACKEND = "redrafter_cpu.triton_backend"
_ACCELERATORS = ("cuda", "hip", "xpu")


@dataclass(frozen=True)
class Decision:
    """`active`: whether kernels are to be interpreted; `reason`: why, in one sentence."""

    active: bool
    reason: str


def torch_accelerators() -> dict[str, str]:
    """The accelerators that the installed torch was built for, with versions, read without importing torch.

    A CPU build gives an empty dict. No torch at all gives `{"torch": "missing"}`, which is not a CPU build either.
    """
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return {"torch": "missing"}
    version_file = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    if not version_file.is_file():
        return {"torch": "unknown"}
    return accelerators_in(version_file.read_text(encoding="utf-8"))


def accelerators_in(version_source: str) -> dict[str, str]:
    """The accelerators that a `torch/version.py` with this text declares, e.g. `{"cuda": "13.0"}`."""
    found: dict[str, str] = {}
    for node in ast.parse(version_source).body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node.value, ast.Constant) and node.value.value:
            found.update(dict.fromkeys(names.intersection(_ACCELERATORS), str(node.value.value)))
    return found


def other_cpu_backend() -> EntryPoint | None:
    """Another distribution's Triton backend named `cpu` (a real triton-cpu), if one is installed."""
    for entry in entry_points(group=BACKEND_GROUP, name=BACKEND_NAME):
        if entry.value != OUR_BACKEND:
            return entry
    return None


def decide(
    accelerators: Callable[[], dict[str, str]] = torch_accelerators,
    real_backend: Callable[[], EntryPoint | None] = other_cpu_backend,
) -> Decision:
    """Interpret only where torch is a CPU build, no real CPU backend exists and the user has not said no."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("0", "false", "off", "no", "n"):
        return Decision(False, "TRITON_INTERPRET switches interpretation off")
    built_for = accelerators()
    if built_for:
        names = ", ".join(f"{name} {version}" for name, version in built_for.items())
        return Decision(False, f"torch is not a CPU build ({names})")
    real = real_backend()
    if real is not None:
        return Decision(False, f"a Triton backend for the CPU is installed ({real.value})")
    return Decision(True, "torch is a CPU build and Triton has no backend for it")
