# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every supported GPU generation, without a GPU, and does not spill registers."""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.paths import ROOT

triton = pytest.importorskip("triton")
pytest.importorskip("triton.backends.nvidia", reason="this Triton cannot compile for NVIDIA GPUs")

from redrafter_vllm.ops import aot  # noqa: E402

CASES = [
    (op, variant.name, target)
    for op in aot.ops_with_kernels()
    for variant in aot.variants(op)
    for target in aot.TARGETS
]


def _sources() -> str:
    """A hash of everything that a compiled kernel depends on."""
    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted((ROOT / "redrafter_vllm" / "ops").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compile_all() -> list[dict[str, Any]]:
    """In one separate process: kernels are interpreted in this one, and importing Triton takes longest."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "redrafter_vllm.ops.aot", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    return found


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> dict[tuple[str, str, int], aot.Resources]:
    cache = getattr(request.config, "cache", None)  # pytest may run without its cache
    key = f"redrafter/aot/{_sources()}"
    found = cache.get(key, None) if cache is not None else None
    if found is None:
        found = _compile_all()
        if cache is not None:
            cache.set(key, found)
    results = [aot.Resources(**one) for one in found]
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
