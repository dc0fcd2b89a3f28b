# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""The tokens' rows joined before the recurrence's product or added after it, one launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.variant import Variant

_WIDTH = 1024  # of a row, one program


def tokens_and_state(inputs: Tensor, tokens: Tensor, state: Tensor) -> Tensor:
    """See `reference.tokens_and_state`. Rows of `inputs` and states must be contiguous; beams may share a state."""
    batch, width, hidden_size = state.shape
    _check_rows(inputs, state)
    out = torch.empty(batch, width, 2 * hidden_size, dtype=state.dtype, device=state.device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(hidden_size), _WIDTH)
    _join_kernel[(batch * width, triton.cdiv(hidden_size, block))](
        inputs,
        inputs.stride(0),
        tokens,
        *tokens.stride(),
        state,
        state.stride(0),
        state.stride(1),
        out,
        width,
        hidden_size,
        BLOCK=block,
        num_warps=4,
    )
    return out


def add_tokens(product: Tensor, inputs: Tensor, tokens: Tensor) -> Tensor:
    """See `reference.add_tokens`. Rows of `inputs` must be contiguous."""
    batch, width, hidden_size = product.shape
    _check_rows(inputs, product)
    out = torch.empty(batch, width, hidden_size, dtype=product.dtype, device=product.device)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(hidden_size), _WIDTH)
    _add_kernel[(batch * width, triton.cdiv(hidden_size, block))](
        product.contiguous(),
        inputs,
        inputs.stride(0),
        tokens,
        *tokens.stride(),
        out,
        width,
        hidden_size,
        BLOCK=block,
        num_warps=4,
    )
    return out


def _check_rows(*matrices: Tensor) -> None:
    if any(x.stride(-1) != 1 and x.shape[-1] > 1 for x in matrices):
        raise ValueError("tokens' rows, states and products must be contiguous in their last dimension")


@triton.jit
def _of_token(inputs_ptr, inputs_stride, token_ptr, column, inside, dtype: tl.constexpr):
    """A token's row of the inputs, in `dtype`."""
    token = tl.load(token_ptr).to(tl.int64)
    return tl.load(inputs_ptr + token * inputs_stride + column, mask=inside, other=0.0).to(tl.float32).to(dtype)


@triton.jit
def _join_kernel(
    inputs_ptr,  # [V, H]
    inputs_stride,
    tokens_ptr,  # [B, W]
    token_req_stride,
    token_beam_stride,
    state_ptr,  # [B, W, H]
    state_req_stride,
    state_beam_stride,
    out_ptr,  # [B, W, 2H]
    width,
    hidden_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    req, beam = (row // width).to(tl.int64), (row % width).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden_size
    dtype = out_ptr.dtype.element_ty
    tokens_ptr += req * token_req_stride + beam * token_beam_stride
    of_token = _of_token(inputs_ptr, inputs_stride, tokens_ptr, column, inside, dtype)
    state_at = req * state_req_stride + beam * state_beam_stride + column
    of_state = tl.load(state_ptr + state_at, mask=inside, other=0.0)
    out_ptr += row.to(tl.int64) * 2 * hidden_size
    tl.store(out_ptr + column, of_token, mask=inside)
    tl.store(out_ptr + hidden_size + column, of_state, mask=inside)


@triton.jit
def _add_kernel(
    product_ptr,  # [B, W, H]
    inputs_ptr,  # [V, H]
    inputs_stride,
    tokens_ptr,  # [B, W]
    token_req_stride,
    token_beam_stride,
    out_ptr,  # [B, W, H]
    width,
    hidden_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    req, beam = (row // width).to(tl.int64), (row % width).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden_size
    dtype = out_ptr.dtype.element_ty
    tokens_ptr += req * token_req_stride + beam * token_beam_stride
    of_token = _of_token(inputs_ptr, inputs_stride, tokens_ptr, column, inside, dtype)
    place = row.to(tl.int64) * hidden_size + column
    product = tl.load(product_ptr + place, mask=inside, other=0.0).to(tl.float32)
    # Rounded at every step, as torch does.
    total = (of_token.to(tl.float32) + product).to(dtype).to(tl.float32)
    tl.store(out_ptr + place, (total / (1.0 + tl.exp(-total))).to(dtype), mask=inside)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: embeddings of the drafter's type and of another."""
    return [
        _variant("join_bf16", _join_kernel, "*bf16", "*bf16"),
        _variant("join_fp32_of_bf16", _join_kernel, "*fp32", "*bf16"),
        _variant("add_bf16", _add_kernel, "*bf16", "*bf16"),
        _variant("add_fp32", _add_kernel, "*fp32", "*fp32"),
    ]


def _variant(name: str, kernel: triton.runtime.JITFunction, kind: str, of_inputs: str) -> Variant:
    types = {
        argument: kind if argument.endswith("_ptr") else "i32" for argument in kernel.arg_names if argument != "BLOCK"
    }
    return Variant(name, kernel, types | {"inputs_ptr": of_inputs, "tokens_ptr": "*i64"}, {"BLOCK": _WIDTH})
