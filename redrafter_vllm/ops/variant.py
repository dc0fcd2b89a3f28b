# SPDX-License-Identifier: Apache-2.0
"""Descriptions of kernels with which they can be compiled without being launched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel with the argument types and constants of one launch.

    A `kernel.py` lists its own in `variants() -> list[Variant]`; `redrafter_vllm.ops.aot` compiles them.
    """

    name: str  # unique within its folder, e.g. "bf16_d128"
    kernel: Any  # the decorated function
    types: Mapping[str, str]  # by argument, in Triton's spelling: "*bf16", "*i64", "i32", "fp32"; no constants
    constants: Mapping[str, Any] = field(default_factory=dict)  # by argument, each `tl.constexpr` of the kernel
    num_warps: int = 4
    num_stages: int = 3
    multiples_of_16: frozenset[str] = frozenset()  # integers that usually are, as Triton finds at a launch

    def __post_init__(self) -> None:
        named, wanted = set(self.types) | set(self.constants), set(self.kernel.arg_names)
        if named != wanted:
            raise ValueError(
                f"variant {self.name}: arguments {sorted(wanted - named)} are missing, {sorted(named - wanted)} are "
                "not the kernel's"
            )
        if unknown := self.multiples_of_16 - set(self.types):
            raise ValueError(f"variant {self.name}: {sorted(unknown)} have no type")
