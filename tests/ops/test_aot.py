# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every supported GPU generation, without a GPU, and does not spill registers."""

import hashlib
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.paths import ROOT

triton = pytest.importorskip("triton")
pytest.importorskip("triton.backends.nvidia", reason="this Triton cannot compile for NVIDIA GPUs")

from redrafter_vllm.ops import aot  # noqa: E402

OPS = ROOT / "redrafter_vllm" / "ops"
IMPORTED_OP = re.compile(r"redrafter_vllm\.ops\.(\w+)")

CASES = [
    (op, variant.name, target)
    for op in aot.ops_with_kernels()
    for variant in aot.variants(op)
    for target in aot.TARGETS
]


def _key(op: str) -> str:
    """Changes with anything that the kernels of `op` depend on: its files and those of the ops it imports."""
    folders, left = {"."}, [op]
    while left:
        folders.add(folder := left.pop())
        text = "".join(path.read_text(encoding="utf-8") for path in (OPS / folder).glob("*.py"))
        left += {name for name in IMPORTED_OP.findall(text) if (OPS / name).is_dir()} - folders
    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted(path for folder in folders for path in (OPS / folder).glob("*.py")):
        digest.update(path.read_bytes())
    return f"redrafter/aot/{op}-{digest.hexdigest()}"


def _compile(ops: list[str]) -> list[dict[str, Any]]:
    """In one separate process: kernels are interpreted in this one, and importing Triton takes longest."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "redrafter_vllm.ops.aot", "--json", "--ops", *ops]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == sum(op in ops for op, _, _ in CASES), done.stderr
    return found


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> dict[tuple[str, str, int], aot.Resources]:
    """By op, variant and target. Only ops whose sources have changed since the last run are compiled."""
    cache = getattr(request.config, "cache", None)  # pytest may run without its cache
    ops = aot.ops_with_kernels()
    found = {op: cache.get(_key(op), None) if cache is not None else None for op in ops}
    missing = [op for op in ops if found[op] is None]
    made = _compile(missing) if missing else []
    for op in missing:
        found[op] = [one for one in made if one["op"] == op]
        if cache is not None:
            cache.set(_key(op), found[op])
    results = [aot.Resources(**one) for op in ops for one in found[op]]
    return {(one.op, one.variant, one.target): one for one in results}


@pytest.mark.parametrize(("op", "variant", "target"), CASES)
def test_compiles_without_spilling(
    compiled: dict[tuple[str, str, int], aot.Resources], op: str, variant: str, target: int
) -> None:
    resources = compiled[op, variant, target]
    print(resources.row())
    assert resources.complaint is None, resources.complaint


def test_a_spill_is_a_complaint() -> None:
    fine = aot.Resources("op", "variant", 90, 4, 64, 0, 0, 0, 1024, 0.1)
    assert fine.complaint is None
    assert "spills 8 bytes" in str(aot.Resources("op", "variant", 90, 4, 255, 8, 12, 8, 0, 0.1).complaint)
    assert "shared memory" in str(aot.Resources("op", "variant", 89, 4, 64, 0, 0, 0, 110_000, 0.1).complaint)


def test_a_variant_must_name_every_argument() -> None:
    from redrafter_vllm.ops.tree_verify import kernel
    from redrafter_vllm.ops.variant import Variant

    good = kernel.variants()[0]
    types = {name: kind for name, kind in good.types.items() if name != "max_depth"}
    with pytest.raises(ValueError, match="max_depth"):
        Variant("short", good.kernel, types, good.constants)
    with pytest.raises(ValueError, match="nonsense"):
        Variant("long", good.kernel, good.types, {**good.constants, "nonsense": 1})
