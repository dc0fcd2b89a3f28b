# SPDX-License-Identifier: Apache-2.0
"""Makes elements visible that a kernel's launcher allocates and the kernel does not write."""

from typing import Any

import pytest
import torch


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the tensors of `torch.empty` and `torch.empty_like` with values that are no result."""

    def poisoned(function: Any) -> Any:
        def allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor: torch.Tensor = function(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.dtype.is_floating_point else -777)

        return allocate

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
