# SPDX-License-Identifier: Apache-2.0
"""A ResBlock's nonlinearity and skip: by hand, and kernel against reference."""

import math

import pytest
import torch

from redrafter_vllm.ops.residual import reference
from tests.ops.devices import DEVICE, runs_kernels
from tests.ops.poison import poison_empty

# The interpreter truncates to bf16 where a GPU rounds, in up to four steps.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-5, torch.float16: 2**-9}
DTYPES = list(TOLERANCE)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def test_by_hand() -> None:
    product, x = torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, -2.0]])
    torch.testing.assert_close(reference.residual(product, x), torch.tensor([[5.0, -2.0 + silu(1)]]))
    # One request of two beams, contexts of 1 and states of 2.
    product = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]])
    state = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])
    share, context = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[7.0]])
    wanted = [[7 + silu(1), 10 + silu(1), 20 + silu(1)], [7 + silu(4), 30 + silu(4), 40 + silu(4)]]
    torch.testing.assert_close(reference.first_residual(product, state, share, context), torch.tensor([wanted]))
    for_each = reference.first_residual(product, state, share.expand(1, 2, 3), context.expand(1, 2, 1))
    torch.testing.assert_close(for_each, torch.tensor([wanted]))


def assert_near(mine: torch.Tensor, wanted: torch.Tensor) -> None:
    assert mine.is_contiguous()
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(mine, wanted, atol=tolerance, rtol=tolerance)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 33), (1, 1, 1), (1, 2, 1100), (4, 16), (0, 3, 8)])
def test_later_blocks(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from redrafter_vllm.ops.residual import kernel

    torch.manual_seed(len(shape))
    product, x = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    wanted = reference.residual(product, x)
    poison_empty(monkeypatch)
    assert_near(kernel.residual(product, x), wanted)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_all_beams", [True, False])
@pytest.mark.parametrize(("batch", "width", "hidden_size"), [(2, 3, 17), (1, 1, 1), (1, 4, 600), (0, 2, 8)])
def test_the_first_block(
    batch: int, width: int, hidden_size: int, of_all_beams: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redrafter_vllm.ops.residual import kernel

    torch.manual_seed(width)
    leading = (batch,) if of_all_beams else (batch, width)
    product = torch.randn(batch, width, 2 * hidden_size, device=DEVICE).to(dtype)
    state = torch.randn(batch, width, hidden_size, device=DEVICE).to(dtype)
    # As in a drafter: columns of one matrix.
    whole = torch.randn(*leading, 3 * hidden_size, device=DEVICE).to(dtype)
    share, context = whole[..., : 2 * hidden_size], whole[..., 2 * hidden_size :]
    wanted = reference.first_residual(product, state, share, context)
    poison_empty(monkeypatch)
    assert_near(kernel.first_residual(product, state, share, context), wanted)


@runs_kernels
def test_large_products_neither_overflow_nor_vanish() -> None:
    from redrafter_vllm.ops.residual import kernel

    product = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4, math.inf], device=DEVICE)
    assert kernel.residual(product, torch.ones_like(product)).tolist() == [1.0, 1.0, 1.0, 101.0, 10001.0, math.inf]
