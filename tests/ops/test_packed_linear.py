# SPDX-License-Identifier: Apache-2.0
"""Products with packed weights: the layout by hand, and the kernel against exact products."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops import packed_linear
from redrafter_vllm.ops.packed_linear import native, reference
from tests.ops.native import needs_packed_linear

PRODUCTS = [
    pytest.param(reference.packed_linear, id="torch"),
    pytest.param(native.packed_linear, id="native", marks=needs_packed_linear),
    pytest.param(packed_linear.linear, id="operator", marks=needs_packed_linear),
]
ROWS = (1, 2, 13, 14, 15, 28, 31, 70)  # one tile, several equal ones, and unequal ones


def operands(rows: int, outputs: int, inputs: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    return x.bfloat16(), (weight * inputs**-0.5).bfloat16(), bias.bfloat16()


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


def test_the_layout() -> None:
    """33 outputs of 4 inputs: two panels; output 17's inputs 2 and 3 lie behind those of the 16 before, of pair 1."""
    weight = torch.arange(33 * 4).view(33, 4)
    packed = packed_linear.pack(weight)
    assert packed.shape == (2, 2, 32, 2)
    assert packed.flatten()[64 + 2 * 17 : 64 + 2 * 18].tolist() == [17 * 4 + 2, 17 * 4 + 3]
    assert packed[1, :, 0].flatten().tolist() == [128, 129, 130, 131]
    assert int(packed[1, :, 1:].abs().sum()) == 0


@pytest.mark.parametrize("linear", PRODUCTS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (16, 2), (7, 6), (33, 10), (250, 514)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products(linear: native.Product, rows: int, outputs: int, inputs: int, with_bias: bool) -> None:
    """The nearest bfloat16 number to the exact one, or, where float32 sums round, a neighbour."""
    x, weight, bias = operands(rows, outputs, inputs)
    found = linear(x, packed_linear.pack(weight), bias if with_bias else None, outputs)
    assert found.shape == (rows, outputs) and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact(x, weight, bias if with_bias else None), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("linear", PRODUCTS)
def test_any_leading_shape(linear: native.Product) -> None:
    x, weight, _ = operands(24, 40, 16)
    packed = packed_linear.pack(weight)
    flat = linear(x, packed, None, 40)
    assert torch.equal(linear(x.view(2, 3, 4, 16), packed, None, 40), flat.view(2, 3, 4, 40))
    assert torch.equal(linear(x[:, None, None], packed, None, 40), flat[:, None, None])
    assert linear(x[:0], packed, None, 40).shape == (0, 40)
    wide = torch.randn(24, 48).bfloat16()
    wide[:, 8:24] = x
    assert torch.equal(linear(wide[:, 8:24], packed, None, 40), flat)
    assert torch.equal(linear(x.t().contiguous().t(), packed, None, 40), flat)
    assert torch.equal(linear(x[:1].expand(5, 16), packed, None, 40), flat[:1].expand(5, 40))


@needs_packed_linear
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it() -> None:
    x, weight, bias = operands(70, 250, 514)
    packed = packed_linear.pack(weight)
    alone = torch.cat([packed_linear.linear(row[None], packed, bias, 250) for row in x])
    for rows in ROWS:
        assert torch.equal(packed_linear.linear(x[:rows], packed, bias, 250), alone[:rows])


@needs_packed_linear
@pytest.mark.parametrize("threads", [1, 2, 3, 7, 40])
def test_any_number_of_threads(threads: int) -> None:
    """Outputs are shared by halves of a panel; with 40 threads some get nothing."""
    x, weight, bias = operands(17, 250, 64)
    packed, before = packed_linear.pack(weight), torch.get_num_threads()
    expected = packed_linear.linear(x, packed, bias, 250)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(packed_linear.linear(x, packed, bias, 250), expected)
    finally:
        torch.set_num_threads(before)


@needs_packed_linear
def test_nothing_but_the_result_is_written() -> None:
    """Also where the last panel has fewer outputs than a vector."""
    x, weight, _ = operands(15, 37, 10)
    packed = packed_linear.pack(weight)
    memory = torch.full((17, 37), torch.nan, dtype=torch.bfloat16)
    native.kernel()(x.data_ptr(), packed.data_ptr(), None, memory[1:].data_ptr(), 15, x.stride(0), packed.shape[1], 37)
    assert memory.isnan().sum(1).tolist() == [37, *[0] * 15, 37]


@needs_packed_linear
def test_infinite_and_missing_numbers_stay() -> None:
    x, weight, _ = operands(3, 32, 4)
    x[1, 2], x[2, 0] = torch.inf, torch.nan
    found = packed_linear.linear(x, packed_linear.pack(weight.abs()), None, 32)
    assert found[0].isfinite().all() and found[1].isposinf().all() and found[2].isnan().all()


@needs_packed_linear
def test_torch_knows_the_op() -> None:
    """Its schema, its result's shape, and compiled with a number of rows that is not fixed."""
    x, weight, bias = operands(5, 40, 16)
    packed = packed_linear.pack(weight)
    torch.library.opcheck(torch.ops.redrafter.packed_linear.default, (x, packed, bias, 40))
    torch.library.opcheck(torch.ops.redrafter.packed_linear.default, (x.view(1, 5, 16), packed, None, 40))


@needs_packed_linear
def test_what_the_operator_refuses() -> None:
    x, weight, bias = operands(5, 40, 16)
    packed = packed_linear.pack(weight)
    for given, words in (
        ((x.float(), packed, bias, 40), "takes bfloat16"),
        ((x, packed.transpose(0, 1), bias, 40), "as `pack` returns them"),
        ((x[:, 1:], packed, bias, 40), "sizes do not agree"),
        ((x, packed, bias, 65), "sizes do not agree"),
        ((x, packed, bias[1:], 40), "bias has another type or size"),
        ((x, packed, bias.float(), 40), "bias has another type or size"),
    ):
        with pytest.raises(RuntimeError, match=words):
            packed_linear.linear(*given)


WITHOUT_HEADERS = """
import torch
from redrafter_vllm.ops import native, packed_linear
from redrafter_vllm.ops.packed_linear import reference
native._flags_of_torch = lambda: []
x, weight = torch.randn(3, 64).bfloat16(), torch.randn(32, 64).bfloat16()
assert packed_linear.supports(weight)
packed = packed_linear.pack(weight)
expected = reference.packed_linear(x, packed, None, 32)
torch.testing.assert_close(packed_linear.linear(x, packed, None, 32), expected, rtol=0.02, atol=0.02)
"""


@pytest.mark.process
@needs_packed_linear
def test_without_torchs_headers_calls_go_through_python(tmp_path: Path) -> None:
    environment = os.environ | {"REDRAFTER_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEADERS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "slower operations take the place of packed_linear/torch_op.cpp" in done.stderr
    assert len([*(tmp_path / "native").iterdir()]) == 1


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(32, 4),
        torch.zeros(32, 4, dtype=torch.float16),
        torch.zeros(32, 5, dtype=torch.bfloat16),
        torch.zeros(32, 1, 4, dtype=torch.bfloat16),
        torch.zeros(32, 4, dtype=torch.bfloat16, device="meta"),
    ],
    ids=["fp32", "fp16", "odd", "3 dimensions", "no data"],
)
def test_weights_that_stay_with_vllm(weight: Tensor) -> None:
    assert not native.supports(weight)


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, True)])
def test_processors_that_stay_with_vllm(bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert not native.supports(torch.zeros(32, 4, dtype=torch.bfloat16))
