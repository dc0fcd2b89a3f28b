# SPDX-License-Identifier: Apache-2.0
"""The recurrence without its product: by hand, and kernels against references."""

import pytest
import torch

from redrafter_vllm.ops.recurrence import reference
from tests.ops.devices import DEVICE, assert_equal, runs_kernels
from tests.ops.poison import poison_empty
from tests.ops.test_kernel_residual import DTYPES, assert_near, silu

SIZES = [(2, 3, 33), (1, 1, 1), (1, 2, 1100), (0, 3, 8)]


def test_by_hand() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    tokens, state = torch.tensor([[2, 0]]), torch.tensor([[[7.0, 8.0], [9.0, 10.0]]])
    assert reference.tokens_and_state(inputs, tokens, state).tolist() == [[[5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 9.0, 10.0]]]
    wanted = [[[silu(12), silu(14)], [silu(10), silu(12)]]]
    torch.testing.assert_close(reference.add_tokens(state, inputs, tokens), torch.tensor(wanted))


def rows(hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a padded matrix."""
    return torch.randn(50, hidden_size + 3, device=DEVICE).to(dtype)[:, :hidden_size]


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_inputs", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "width", "hidden_size"), SIZES)
def test_joining(
    batch: int,
    width: int,
    hidden_size: int,
    of_inputs: torch.dtype,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from redrafter_vllm.ops.recurrence import kernel

    torch.manual_seed(width)
    inputs, tokens = rows(hidden_size, of_inputs), torch.randint(50, (batch, width), device=DEVICE)
    state = torch.randn(batch, width, hidden_size, device=DEVICE).to(dtype)
    # Before the first step all beams of a request share one token and one state.
    same = tokens[:, :1].expand(batch, width), state[:, :1].expand(batch, width, hidden_size)
    wanted = [reference.tokens_and_state(inputs, *each) for each in ((tokens, state), same)]
    poison_empty(monkeypatch)
    for given, expected in zip(((tokens, state), same), wanted, strict=True):
        joined = kernel.tokens_and_state(inputs, *given)
        assert_near(joined, expected)
        assert_equal(joined[..., hidden_size:], expected[..., hidden_size:])


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "width", "hidden_size"), SIZES)
def test_adding(batch: int, width: int, hidden_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from redrafter_vllm.ops.recurrence import kernel

    torch.manual_seed(width)
    inputs, tokens = rows(hidden_size, dtype), torch.randint(50, (batch, width), device=DEVICE)
    product = torch.randn(batch, width, hidden_size, device=DEVICE).to(dtype)
    wanted = reference.add_tokens(product, inputs, tokens)
    poison_empty(monkeypatch)
    assert_near(kernel.add_tokens(product, inputs, tokens), wanted)


@runs_kernels
def test_columns_are_refused() -> None:
    from redrafter_vllm.ops.recurrence import kernel

    inputs, tokens = torch.zeros(8, 8, device=DEVICE).t(), torch.zeros(1, 2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="contiguous in their last dimension"):
        kernel.tokens_and_state(inputs, tokens, torch.zeros(1, 2, 8, device=DEVICE))
