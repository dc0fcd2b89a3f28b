# SPDX-License-Identifier: Apache-2.0
"""Compiles our Triton kernels for named GPUs, on any machine: no GPU and no CUDA installation is needed.

    TRITON_INTERPRET=0 python -m redrafter_vllm.ops.aot --targets 80 90 --ops tree_verify

prints registers, spills and shared memory of every kernel and fails when one spills. The assembler that ships with
Triton gives these figures, but for shared memory, which is the compiler's figure: part of it is allocated at launch.
"""

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO

from redrafter_vllm.ops.variant import Variant

TARGETS = (80, 89, 90, 100)  # compute capability × 10
# Shared memory that one block can use, in bytes (CUDA C++ Programming Guide, technical specifications).
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel on one target; registers are per thread, the rest in bytes."""

    op: str
    variant: str
    target: int
    num_warps: int
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    seconds: float

    @property
    def complaint(self) -> str | None:
        """Why the kernel should not be used as it is, or None."""
        if self.spill_stores or self.spill_loads:
            return f"spills {self.spill_stores} bytes of registers"
        if self.shared > SHARED_LIMIT.get(self.target, self.shared):
            return f"needs {self.shared} bytes of shared memory of {SHARED_LIMIT[self.target]}"
        return None

    def row(self) -> str:
        return (
            f"{self.op + '/' + self.variant:<44} sm_{self.target:<4} {self.num_warps:>2} warps {self.registers:>4} "
            f"registers {self.spill_stores + self.spill_loads:>5} B spilled {self.shared:>7} B shared "
            f"{self.seconds:>6.2f} s"
        )


def ops_with_kernels() -> list[str]:
    """Folders of this package that hold a `kernel.py`."""
    package = importlib.import_module("redrafter_vllm.ops")
    folders = [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg]
    return [name for name in folders if importlib.util.find_spec(f"redrafter_vllm.ops.{name}.kernel")]


def variants(op: str) -> list[Variant]:
    """The variants of this op to compile."""
    listed: list[Variant] = importlib.import_module(f"redrafter_vllm.ops.{op}.kernel").variants()
    return listed


def compile_variant(op: str, variant: Variant, target: int) -> Resources:
    """Compiles without Triton's cache, because only the assembler reports spills.

    Raises RuntimeError when Triton interprets kernels in this process (TRITON_INTERPRET).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise RuntimeError("Kernels are interpreted in this process; start it with TRITON_INTERPRET=0.")
    # Triton reads the signature in the kernel's own order.
    signature = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, dict(variant.constants), _alignment(variant))
    # A launch has fusion by default; Triton 3.9 and later warn when the option is not given.
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log = StringIO()
    start = os.times()
    with redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    used = os.times()
    seconds = sum(used[:4]) - sum(start[:4])
    return _resources(op, variant, target, log.getvalue(), compiled.metadata.shared, seconds)


def _alignment(variant: Variant) -> dict[tuple[int, ...], list[list[object]]]:
    pointers = {name for name, kind in variant.types.items() if kind.startswith("*")}
    divisible = pointers | variant.multiples_of_16
    return {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(variant.kernel.arg_names) if name in divisible
    }


def _resources(op: str, variant: Variant, target: int, log: str, shared: int, seconds: float) -> Resources:
    registers = re.search(r"Used (\d+) registers", log)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or frame is None:
        raise RuntimeError(f"The assembler's report for {op}/{variant.name} is not as expected:\n{log}")
    stack, stores, loads = (int(n) for n in frame.groups())
    return Resources(
        op, variant.name, target, variant.num_warps, int(registers[1]), stores, loads, stack, shared, round(seconds, 2)
    )


def compile_all(ops: Iterable[str], targets: Iterable[int]) -> Iterator[Resources]:
    """Every variant of `ops` for every target, one after the other."""
    # A separate directory keeps kernels for other machines out of the user's cache.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for op in ops:
            for variant in variants(op):
                for target in targets:
                    yield compile_variant(op, variant, target)


def main(arguments: list[str] | None = None) -> int:
    """Prints one row, or one line of JSON, for each kernel and target; 1 when one of them should not ship."""
    parser = argparse.ArgumentParser(prog="python -m redrafter_vllm.ops.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS), metavar="CAPABILITY")
    parser.add_argument("--ops", nargs="+", default=ops_with_kernels(), metavar="OP")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args(arguments)
    complaints = 0
    for found in compile_all(options.ops, options.targets):
        print(json.dumps(asdict(found)) if options.json else found.row(), flush=True)
        if found.complaint is not None:
            complaints += 1
            print(f"{found.op}/{found.variant} on sm_{found.target} {found.complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
