# SPDX-License-Identifier: Apache-2.0
"""Where quantised drafters can be served."""

from typing import Any

import pytest
import torch

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.frontend import quantization as checks
from tests.integration.platforms import CPU, PASCAL, ROCM, TURING


@pytest.mark.parametrize(
    ("platform", "quantization", "dtype"),
    [
        (ROCM, None, torch.float32),
        (CPU, "int8", torch.float32),
        (TURING, "int8", torch.float16),
        (TURING, "fp8", torch.bfloat16),
    ],
)
def test_served(platform: Any, quantization: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "current_platform", platform)
    checks.check_quantization(quantization, dtype)


@pytest.mark.parametrize(
    ("platform", "quantization", "dtype", "sentence"),
    [
        (CPU, "fp8", torch.bfloat16, "'fp8' needs an NVIDIA GPU, and this is cpu; use 'int8' or leave it out"),
        (ROCM, "int8", torch.bfloat16, "'int8' needs an NVIDIA GPU, and this is rocm; leave it out"),
        (PASCAL, "fp8", torch.float16, "compute capability 7.5 or higher"),
        (TURING, "int8", torch.float32, "'int8' needs dtype bfloat16 or float16, not torch.float32"),
    ],
)
def test_refused(
    platform: Any, quantization: str, dtype: torch.dtype, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "current_platform", platform)
    with pytest.raises(OptionError, match=sentence):
        checks.check_quantization(quantization, dtype)
