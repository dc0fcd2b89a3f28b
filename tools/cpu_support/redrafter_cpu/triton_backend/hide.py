# SPDX-License-Identifier: Apache-2.0
"""Removes the backend from Triton's table where it must not be active.

Triton lists every backend that it finds, active or not, and other libraries rely on the list: vLLM would choose
runner V2, and torch's inductor would believe that Triton compiles for CPUs.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from redrafter_cpu.detect import BACKEND_NAME, OUR_BACKEND


class _BackendsModule(ModuleType):
    """`triton.backends`, whose table is complete only after its backends, this one too, have been imported."""

    @property
    def backends(self) -> dict[str, Any]:
        table: dict[str, Any] | None = vars(self).get("backends")
        if table is None:
            raise AttributeError("triton.backends is still being imported")
        ours = table.get(BACKEND_NAME)
        if ours is not None and ours.driver.__module__.startswith(OUR_BACKEND):
            del table[BACKEND_NAME]
        return table


def hide() -> None:
    """Let `triton.backends.backends` leave our backend out from its first reading on."""
    module = sys.modules.get("triton.backends")
    if module is not None:
        module.__class__ = _BackendsModule
