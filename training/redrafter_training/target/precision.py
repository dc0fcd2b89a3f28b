# SPDX-License-Identifier: Apache-2.0
"""Matrix products in bfloat16 where they are faster."""

import torch

from redrafter_training.config.recipe import MixedPrecision

# Names of torch.cpu.get_capabilities. Other processors emulate bfloat16, slower than they compute in float32.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def has_bf16_products(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16; every GPU is taken to have them."""
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16_INSTRUCTIONS)


def mixed_precision(device: torch.device, setting: MixedPrecision = "auto") -> torch.autocast:
    """A context in which products are in bfloat16, and all else, weights included, keeps its type.

    Args:
        setting: auto does so where the device has such products, bf16 everywhere, none nowhere.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved(device, setting) == "bf16")


def resolved(device: torch.device, setting: MixedPrecision) -> MixedPrecision:
    """What `setting` means on `device`: bf16 or none."""
    if setting != "auto":
        return setting
    return "bf16" if has_bf16_products(device) else "none"
