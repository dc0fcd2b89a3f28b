# SPDX-License-Identifier: Apache-2.0
"""The layout, and the products in plain torch."""

from torch import Tensor
from torch.nn.functional import linear, pad

PANEL = 32  # outputs of one panel: two vectors of 16 numbers


def pack(weight: Tensor) -> Tensor:
    """A weight [N, K], K even, as panels [ceil(N / 32), K / 2, 32, 2]: of 32 outputs each two inputs lie together.

    That is the order in which the processor's instruction takes them. Outputs that are missing in the last panel are 0.
    """
    outputs, inputs = weight.shape
    whole = pad(weight, (0, 0, 0, -outputs % PANEL))
    return whole.view(-1, PANEL, inputs // 2, 2).transpose(1, 2).contiguous()


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """Rows [..., K] times the weight [size, K] that `packed` holds, plus `bias` [size]: [..., size].

    Products are added in float32 and rounded once. In the kernel a row's bits do not depend on the rows beside it.
    """
    weight = packed.transpose(1, 2).reshape(-1, 2 * packed.shape[1])[:size]
    return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
