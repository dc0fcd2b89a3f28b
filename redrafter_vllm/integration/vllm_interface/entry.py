# SPDX-License-Identifier: Apache-2.0
"""One entry of the list: a name of vLLM, how it is used, and what it must have."""

from dataclasses import dataclass
from enum import StrEnum


class InterfaceChangedError(RuntimeError):
    """A name of vLLM that the package uses is gone from the installed version, or has changed."""


class Use(StrEnum):
    """How a name is used, and so what its parameters mean."""

    REBOUND = "rebound"  # replaced by a function of ours, which takes exactly these, in this order
    OVERRIDDEN = "overridden"  # implemented by a class of ours with exactly these, in this order
    CALLED = "called"  # we pass these, those behind `*` by name; anything else must have a default
    USED = "used"  # no parameters: a class or value, and the attributes that we read


@dataclass(frozen=True)
class VllmName:
    """One name of vLLM.

    Attributes:
        target: `module:name` or `module:Class.method`.
        use: How it is used.
        parameters: Names separated by spaces.
        attributes: Of a class or its instances, separated by spaces.
    """

    target: str
    use: Use
    parameters: str = ""
    attributes: str = ""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def path(self) -> str:
        """Name within the module."""
        return self.target.partition(":")[2]
