# SPDX-License-Identifier: Apache-2.0
"""Recurrent Drafter (arXiv 2403.09919) for vLLM.

The public names resolve on first use, so that importing the package (which every vLLM process does, to find the
plugin) costs nothing and pulls in neither torch nor vLLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redrafter_vllm.checkpoint.config import DrafterConfig
    from redrafter_vllm.drafting.beam_search import Beams, beam_search
    from redrafter_vllm.drafting.tree import DraftTree
    from redrafter_vllm.model.drafter import Drafter

__version__ = "0.1.0"
__all__ = ["Beams", "DraftTree", "Drafter", "DrafterConfig", "__version__", "beam_search"]

_MODULES = {
    "Drafter": "redrafter_vllm.model.drafter",
    "DrafterConfig": "redrafter_vllm.checkpoint.config",
    "Beams": "redrafter_vllm.drafting.beam_search",
    "beam_search": "redrafter_vllm.drafting.beam_search",
    "DraftTree": "redrafter_vllm.drafting.tree",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
