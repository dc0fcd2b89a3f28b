# SPDX-License-Identifier: Apache-2.0
"""A ResBlock after its matrix product: nonlinearity and skip."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.residual import reference

__all__ = ["first_residual", "residual"]

first_residual = dispatch(reference.first_residual)
residual = dispatch(reference.residual)
