# SPDX-License-Identifier: Apache-2.0
"""vLLM's choice of CPU kernels for linear layers, made for a test: `python -m tests.cpu_kernels sgl MODULE ARGUMENT...`

On processors with AMX vLLM multiplies by small matrices in bf16, and by matrices in INT8, with kernels that it has from
SGLang; everywhere else with oneDNN's. They differ in what they take. A build for AVX-512 with BF16 has SGLang's kernels
as well, and they run without AMX; where there is no such build, functions with the same requirements replace them.
"""

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import linear

CHOICES = ("onednn", "sgl")

_chosen: str | None = None


def chosen() -> str | None:
    """The choice that is being made for this process; None where vLLM makes its own."""
    return _chosen


@contextmanager
def linear_kernels(choice: str) -> Iterator[None]:
    """Layers whose weights vLLM prepares in here get the kernels of a processor with AMX (`sgl`), or without."""
    from vllm.model_executor.kernels.linear.scaled_mm import cpu
    from vllm.model_executor.layers import utils

    global _chosen
    assert choice in CHOICES
    check, before = utils.check_cpu_sgl_kernel, _chosen
    if choice == "sgl" and not has_sgl_kernels():
        stand_in()

    def check_cpu_sgl_kernel(n: int, k: int, dtype: torch.dtype) -> bool:
        # Only during this call: vLLM's attention checks for AMX too, and would then execute its instructions.
        with patch.object(torch.cpu, "_is_amx_tile_supported", lambda: choice == "sgl"):
            return check(n, k, dtype)

    try:
        _chosen = choice
        with (
            patch.dict(os.environ, REDRAFTER_CPU_PRODUCTS="vllm"),  # ours would take the place of either
            patch.object(utils, "check_cpu_sgl_kernel", check_cpu_sgl_kernel),
            patch.object(cpu, "check_cpu_sgl_kernel", check_cpu_sgl_kernel),
        ):
            yield
    finally:
        _chosen = before


def has_sgl_kernels() -> bool:
    """Whether the build of vLLM's that this processor loads has SGLang's kernels."""
    return torch.cpu._is_avx512_bf16_supported() and hasattr(torch.ops._C, "int8_scaled_mm_with_quant")


def int8_saturates() -> bool:
    """Whether oneDNN adds two INT8 products at a time in 16 bits, where large ones are cut off: on x86 without VNNI."""
    able = torch.cpu.get_capabilities()
    return able.get("architecture") == "x86_64" and not (able.get("avx512_vnni") or able.get("avx_vnni"))


def stand_in() -> None:
    """For good, as layers call these by name: without AMX vLLM itself never does."""
    from vllm import _custom_ops

    torch.ops._C.convert_weight_packed = Tensor.clone
    torch.ops._C.int8_scaled_mm_with_quant = int8_scaled_mm_with_quant
    _custom_ops.weight_packed_linear_cpu = weight_packed_linear_cpu


def weight_packed_linear_cpu(x: Tensor, packed_weight: Tensor, n: int, bias: Tensor | None) -> Tensor:
    """In the place of vLLM's function of this name: x [..., K] times a weight [N, K], a bias in fp32."""
    assert x.dtype == packed_weight.dtype and len(packed_weight) == n
    _refuse_no_rows(x.reshape(-1, x.shape[-1]))
    return linear(x.float(), packed_weight.float(), bias).to(x.dtype)


def int8_scaled_mm_with_quant(
    mat1: Tensor, mat2: Tensor, scales2: Tensor, bias: Tensor | None, out_dtype: torch.dtype, is_vnni: bool
) -> Tensor:
    """In the place of vLLM's kernel: mat1 [M, K], its rows rounded to INT8, times mat2 [N, K] with a scale a row."""
    if mat1.dim() != 2:
        raise RuntimeError("mat1 must be a 2D tensor")
    if mat1.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("int8_scaled_mm_with_quant: expect A to be bfloat16 or half.")
    _refuse_no_rows(mat1)
    scales1 = mat1.float().abs().amax(1, keepdim=True).clamp(min=1e-7) / 127
    codes = (mat1.float() / scales1).round()
    return linear(codes * scales1, mat2.float() * scales2, bias).to(out_dtype)


def _refuse_no_rows(x: Tensor) -> None:
    """The kernels divide by the number of rows, which ends the process."""
    if not len(x):
        raise ZeroDivisionError("a product of no rows")


def inputs(columns: int, generator: torch.Generator) -> list[Tensor]:
    """[..., columns] of every kind that a drafter's product may get: no rows and one row seen as three among them."""
    shapes = [(columns,), (1, columns), (5, columns), (2, 3, 2, columns), (0, columns), (0, 3, columns)]
    own = [torch.randn(shape, generator=generator) for shape in shapes]
    return own + [torch.randn(rows, 1, columns, generator=generator).expand(rows, 3, columns) for rows in (0, 1, 12)]


def run(choice: str, module: str) -> None:
    """`module` as a program, with what is left of the command line."""
    with linear_kernels(choice):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(sys.argv.pop(1), sys.argv.pop(1))
