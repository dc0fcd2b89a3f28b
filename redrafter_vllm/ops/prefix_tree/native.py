# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernels of prefix trees and their ancestor masks on a CPU."""

from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library

_SOURCE = Path(__file__).with_suffix(".cpp")


def supports(*given: Tensor | int | None) -> bool:
    """Of the arguments of either op: indices are int64, scores fp32."""
    dtypes = {x.dtype for x in given if isinstance(x, Tensor)}
    return dtypes <= {torch.int64, torch.float32} and library(_SOURCE) is not None


def prefix_tree(
    tokens: Tensor, parents: Tensor, scores: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, width = tokens.shape
    shape = batch, max_nodes
    integers = [torch.empty(shape, dtype=torch.int64) for _ in range(4)]
    node_tokens, node_parents, depths, beams = integers
    node_scores, num_nodes = torch.empty(shape, dtype=torch.float32), torch.empty(batch, dtype=torch.int64)
    made = node_tokens, node_parents, depths, node_scores, beams, num_nodes
    given = [x.contiguous() for x in (tokens, parents, scores)]
    beam_limit = None if beam_limit is None else beam_limit.contiguous()
    function(_SOURCE, "prefix_tree", "aaaaaaaaaaiiii")(
        *(x.data_ptr() for x in given),
        None if beam_limit is None else beam_limit.data_ptr(),
        *(x.data_ptr() for x in made),
        batch,
        length,
        width,
        max_nodes,
    )
    return made


def ancestor_mask(parents: Tensor, num_nodes: Tensor) -> Tensor:
    batch, capacity = parents.shape
    mask = torch.zeros(batch, capacity, capacity, dtype=torch.bool)
    given = parents.contiguous(), num_nodes.contiguous()
    function(_SOURCE, "ancestor_mask", "aaaii")(*(x.data_ptr() for x in (*given, mask)), batch, capacity)
    return mask
