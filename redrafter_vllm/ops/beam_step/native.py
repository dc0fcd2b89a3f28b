# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel of a beam step on a CPU."""

from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.beam_step.reference import BeamStep
from redrafter_vllm.ops.native import function, library

_SOURCE = Path(__file__).with_suffix(".cpp")
_NAMES = {torch.float32: "beam_step_float32", torch.bfloat16: "beam_step_bfloat16"}
_MAX_WIDTH = 64


def supports(
    logits: Tensor, scores: Tensor | None, logits_top_k: int | None = None, id_offsets: Tensor | None = None
) -> bool:
    fits = logits.dtype in _NAMES and logits.shape[1] <= _MAX_WIDTH and logits.stride(2) == 1
    return fits and logits_top_k is None and library(_SOURCE) is not None


def beam_step(
    logits: Tensor, scores: Tensor | None, logits_top_k: int | None = None, id_offsets: Tensor | None = None
) -> BeamStep:
    batch, width, vocab = logits.shape
    step = BeamStep(
        scores=torch.empty(batch, width, dtype=torch.float32),
        parents=torch.empty(batch, width, dtype=torch.int64),
        tokens=torch.empty(batch, width, dtype=torch.int64),
    )
    scores = None if scores is None else scores.contiguous()
    assert scores is None or scores.dtype == torch.float32
    assert id_offsets is None or (id_offsets.dtype == torch.int64 and id_offsets.is_contiguous())
    function(_SOURCE, _NAMES[logits.dtype], "aiiaaaaaiii")(
        logits.data_ptr(),
        *logits.stride()[:2],
        None if scores is None else scores.data_ptr(),
        None if id_offsets is None else id_offsets.data_ptr(),
        *(field.data_ptr() for field in step),
        batch,
        width,
        vocab,
    )
    return step
