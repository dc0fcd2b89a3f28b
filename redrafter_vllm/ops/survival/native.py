# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernels of the estimates on a CPU: the reference is a hundred small operations a step."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library
from redrafter_vllm.ops.survival.reference import MAX_LOG_ODDS, MOST_SAVED, OFFSET_DECAY, OFFSET_RATE, Estimates

_SOURCE = Path(__file__).with_suffix(".cpp")
_POINTERS = "slope intercepts offsets kinds log_odds log_survival sums"


class _Estimates(ctypes.Structure):
    """`Estimates` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in ("num_kinds", "nodes", "copies")),
        *((name, ctypes.c_float) for name in ("max_log_odds", "rate", "decay", "most_saved")),
    )


def supports(estimates: Estimates, *rest: Tensor) -> bool:
    numbers = (torch.float32, torch.int64, torch.int32, torch.bool)
    return all(x.dtype in numbers for x in rest) and library(_SOURCE) is not None


def rank_beams(estimates: Estimates, log_probs: Tensor, parents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = log_probs.contiguous()
    log_odds, log_survival = torch.empty_like(log_probs), torch.empty_like(log_probs)
    _run(
        "rank_beams", "aaaaaaiii", estimates,
        log_probs, _integers(parents), _integers(rows), log_odds, log_survival, *log_probs.shape,
    )  # fmt: skip
    return log_odds, log_survival


def keep_tree(
    estimates: Estimates,
    drawn: Tensor,
    beams: Tensor,
    log_survival: Tensor,
    num_nodes: Tensor,
    node_budget: Tensor,
    rows: Tensor,
    confidences: Tensor,
) -> None:
    assert beams.shape[1] == estimates.kinds.shape[1] and confidences.is_contiguous()
    assert len(drawn) >= len(beams) == len(log_survival) == len(rows)
    integers = [_integers(x) for x in (num_nodes, node_budget, rows)]
    _run(
        "keep_tree", "aaaaaaaaiii", estimates,
        drawn.contiguous(), _integers(beams), log_survival.contiguous(), *integers, confidences,
        len(beams), *drawn.shape[1:],
    )  # fmt: skip


def grade_nodes(estimates: Estimates, rows: Tensor, parents: Tensor, valid: Tensor, path: Tensor) -> None:
    assert parents.shape[1] == estimates.kinds.shape[1]
    accepted = valid.new_empty(parents.shape[1])
    _run(
        "grade_nodes", "aaaaaaii", estimates,
        _integers(rows), _integers(parents), valid.contiguous(), _integers(path), accepted, *path.shape,
    )  # fmt: skip


def _integers(x: Tensor) -> Tensor:
    return x.to(torch.int64).contiguous()


def _run(name: str, arguments: str, estimates: Estimates, *operands: Tensor | int) -> None:
    """Call a function of the source; the operands stay alive meanwhile."""
    own = [getattr(estimates, name) for name in _POINTERS.split()]
    assert all(x.is_contiguous() for x in own)
    given = _Estimates(
        *(x.data_ptr() for x in own),
        len(estimates.intercepts),
        estimates.kinds.shape[1],
        int(estimates.copies),
        MAX_LOG_ODDS,
        OFFSET_RATE,
        OFFSET_DECAY,
        MOST_SAVED,
    )
    addresses = (x.data_ptr() if isinstance(x, Tensor) else x for x in operands)
    function(_SOURCE, name, arguments)(ctypes.addressof(given), *addresses)
