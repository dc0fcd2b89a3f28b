# SPDX-License-Identifier: Apache-2.0
"""The whole list of names, ordered by use."""

from redrafter_vllm.integration.vllm_interface import attention, frontend, scheduler, worker
from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName

_ORDER = tuple(Use)
VLLM_NAMES: tuple[VllmName, ...] = tuple(
    sorted(
        (*frontend.NAMES, *scheduler.NAMES, *worker.NAMES, *attention.NAMES), key=lambda name: _ORDER.index(name.use)
    )
)


def rebound(target: str) -> VllmName:
    """The entry of a rebinding.

    Raises:
        KeyError: It is not in the list.
    """
    return {name.target: name for name in VLLM_NAMES if name.use is Use.REBOUND}[target]
