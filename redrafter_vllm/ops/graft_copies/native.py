# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel of lookup and graft on a CPU."""

from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.graft_copies.reference import LONGEST, SHORTEST, Texts
from redrafter_vllm.ops.native import function, library

_SOURCE = Path(__file__).with_suffix(".cpp")


def supports(
    tokens: Tensor, parents: Tensor, log_probs: Tensor, texts: Texts, rows: Tensor, *rest: Tensor | int | None
) -> bool:
    integers = tokens, parents, rows, *(x for x in rest if isinstance(x, Tensor))
    return (
        all(x.dtype == torch.int64 for x in integers)
        and log_probs.dtype == torch.float32
        and all(x.dtype == torch.int32 and x.stride(-1) == 1 for x in texts)
        and library(_SOURCE) is not None
    )


def graft_copies(
    tokens: Tensor,
    parents: Tensor,
    log_probs: Tensor,
    texts: Texts,
    rows: Tensor,
    length: int,
    beam_limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, steps, width = tokens.shape
    shape = (batch, length, width + 1)
    grafted = tokens.new_empty(shape), parents.new_empty(shape), log_probs.new_empty(shape)
    beams = [x.contiguous() for x in (tokens, parents, log_probs)]
    rows = rows.contiguous()
    beam_limit = None if beam_limit is None else beam_limit.contiguous()
    function(_SOURCE, "graft_copies", "aaaaiaaaaaaiiiiiii")(
        *(x.data_ptr() for x in beams),
        texts.tokens.data_ptr(),
        texts.tokens.stride(0),
        texts.lengths.data_ptr(),
        rows.data_ptr(),
        None if beam_limit is None else beam_limit.data_ptr(),
        *(x.data_ptr() for x in grafted),
        texts.tokens.shape[0],
        batch,
        steps,
        width,
        length,
        SHORTEST,
        LONGEST,
    )
    return grafted
