# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from itertools import repeat

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig, MixedPrecision, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.target.model import TargetModel
from redrafter_training.target.precision import has_bf16_products, mixed_precision
from redrafter_training.trainer.loop import build_drafter, distill

CPU = torch.device("cpu")


def product_type(setting: MixedPrecision) -> torch.dtype:
    with mixed_precision(CPU, setting):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("found", "has"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_auto_follows_the_processor(found: dict[str, object], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert has_bf16_products(CPU) == has
    assert product_type("auto") == (torch.bfloat16 if has else torch.float32)
    assert product_type("bf16") == torch.bfloat16
    assert product_type("none") == torch.float32


def test_gpus_have_them() -> None:
    assert has_bf16_products(torch.device("cuda"))


def test_unknown_setting() -> None:
    with pytest.raises(ValueError, match="mixed_precision must be auto, bf16 or none"):
        DistillConfig(Budget(1), mixed_precision="fp8")  # type: ignore[arg-type]


def test_loss_curve_is_that_of_fp32(tiny_target: TargetModel) -> None:
    """Every step's loss within 2 % of fp32's while it falls by more than 40 %."""
    config = DistillConfig(
        Budget(60), beam_length=2, window=24, response_fraction=0.0, responses=ResponseConfig(count=0)
    )
    batch = Windows.full(torch.randint(40, (4, 24), generator=torch.Generator().manual_seed(0)))
    curves = []
    for setting in ("none", "bf16"):
        chosen = replace(config, mixed_precision=setting)
        history = distill(build_drafter(tiny_target, chosen), tiny_target, repeat(batch), chosen, quiet=True)
        curves.append([step.loss for step in history])
    exact, mixed = curves
    assert exact[-1] < 0.6 * exact[0]
    assert exact != mixed
    assert mixed == pytest.approx(exact, rel=0.02)
