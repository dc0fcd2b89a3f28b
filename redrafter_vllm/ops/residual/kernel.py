# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""A ResBlock's nonlinearity and skip in one launch; every operation rounds to the tensors' type, as torch's do."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.variant import Variant

_WIDTH = 1024  # of a row, one program


def residual(product: Tensor, x: Tensor) -> Tensor:
    """See `reference.residual`."""
    return _launch(product, x, None, None)


def first_residual(product: Tensor, state: Tensor, share: Tensor, context: Tensor) -> Tensor:
    """See `reference.first_residual`; `share` and `context` may be columns of a wider matrix."""
    return _launch(product, state, _as_rows(share), _as_rows(context))


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _launch(product: Tensor, state: Tensor, share: Tensor | None, context: Tensor | None) -> Tensor:
    size, state_size = product.shape[-1], state.shape[-1]
    out = torch.empty_like(product, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    rows = product.numel() // size
    block = min(triton.next_power_of_2(size), _WIDTH)
    _residual_kernel[(rows, triton.cdiv(size, block))](
        product.contiguous(),
        state.contiguous(),
        share,
        0 if share is None else share.stride(0),
        context,
        0 if context is None else context.stride(0),
        out,
        1 if share is None else rows // share.shape[0],
        size,
        size - state_size,
        BLOCK=block,
        num_warps=4,
    )
    return out


@triton.jit
def _residual_kernel(
    product_ptr,  # [R, N]
    state_ptr,  # [R, N - C]
    share_ptr,  # [R / group, N]
    share_stride,
    context_ptr,  # [R / group, C]
    context_stride,
    out_ptr,  # [R, N]
    group,
    size,
    context_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    dtype = out_ptr.dtype.element_ty
    product = tl.load(product_ptr + row * size + column, mask=inside, other=0.0).to(tl.float32)
    of_state = inside & (column >= context_size)
    x = tl.load(state_ptr + row * (size - context_size) + column - context_size, mask=of_state, other=0.0)
    if share_ptr is not None:
        share = tl.load(share_ptr + row // group * share_stride + column, mask=inside, other=0.0)
        product = (product + share.to(tl.float32)).to(dtype).to(tl.float32)
        of_context = column < context_size
        x = tl.where(
            of_context, tl.load(context_ptr + row // group * context_stride + column, mask=of_context, other=0.0), x
        )
    gate = (product / (1.0 + tl.exp(-product))).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * size + column, (x.to(tl.float32) + gate).to(dtype), mask=inside)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: the first block and later ones."""
    return [
        _variant("first_bf16", "*bf16", True),
        _variant("later_bf16", "*bf16", False),
        _variant("later_fp32", "*fp32", False),
    ]


def _variant(name: str, kind: str, is_first: bool) -> Variant:
    types = {argument: kind if argument.endswith("_ptr") else "i32" for argument in _residual_kernel.arg_names}
    constants: dict[str, int | None] = {"BLOCK": _WIDTH}
    if not is_first:
        constants |= {"share_ptr": None, "context_ptr": None, "group": 1}
    types = {argument: kind for argument, kind in types.items() if argument not in constants}
    return Variant(name, _residual_kernel, types, constants)
