# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel of the walk on a CPU."""

from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library
from redrafter_vllm.ops.tree_verify.reference import Walk

_SOURCE = Path(__file__).with_suffix(".cpp")


def supports(
    sampled: Tensor, first_row: Tensor, tokens: Tensor, parents: Tensor, valid: Tensor, max_depth: int
) -> bool:
    integers = all(x.dtype == torch.int64 for x in (sampled, first_row, tokens, parents))
    return integers and valid.dtype == torch.bool and library(_SOURCE) is not None


def tree_verify(
    sampled: Tensor, first_row: Tensor, tokens: Tensor, parents: Tensor, valid: Tensor, max_depth: int
) -> Walk:
    batch, num_nodes = tokens.shape
    walk = Walk(
        emitted=torch.empty(batch, 1 + num_nodes, dtype=torch.int64),
        path=torch.empty(batch, max_depth, dtype=torch.int64),
        num_emitted=torch.empty(batch, dtype=torch.int32),
        leaf=torch.empty(batch, dtype=torch.int64),
    )
    inputs = [x.contiguous() for x in (sampled, first_row, tokens, parents, valid)]
    addresses = (x.data_ptr() for x in (*inputs, *walk))
    function(_SOURCE, "tree_verify", "aaaaaaaaaiii")(*addresses, batch, num_nodes, max_depth)
    return walk
