# SPDX-License-Identifier: Apache-2.0
"""Products with bfloat16 weights laid out for a CPU's instructions, for the few rows of a step that verifies drafts.

The weights are read once for up to 14 rows, and fetched ahead while the products before are added up. So, where memory
is what limits, these rows take about as long as one and drafts cost little to verify: oneDNN's products, which vLLM
uses, take 1.0 to 1.2 times as long for 6 rows as for one, and 1.3 to 1.7 times for 14.

`linear` is known to torch as `redrafter::packed_linear`, so that compiled graphs call it. It can be called once
`supports` has said yes.
"""

import torch
from torch import Tensor

from redrafter_vllm.ops.packed_linear import native
from redrafter_vllm.ops.packed_linear.reference import pack

__all__ = ["linear", "pack", "supports"]

supports = native.supports


@torch.library.register_fake("redrafter::packed_linear", lib=native.OPERATORS)
def _shape(x: Tensor, packed: Tensor, bias: Tensor | None, size: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], size)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """What `reference.packed_linear` returns."""
    result: Tensor = torch.ops.redrafter.packed_linear.default(x, packed, bias, size)
    return result
