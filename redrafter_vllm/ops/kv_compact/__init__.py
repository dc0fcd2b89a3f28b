# SPDX-License-Identifier: Apache-2.0
"""Moves the keys and values of an accepted path to the slots that plain decoding would have used."""

from collections.abc import Sequence

from torch import Tensor

from redrafter_vllm.ops.dispatch import dispatch, use_kernel
from redrafter_vllm.ops.kv_compact import reference

__all__ = ["kv_compact", "prepare"]

kv_compact = dispatch(reference.kv_compact)


def prepare(kv_caches: Sequence[Tensor]) -> None:
    """Prepare `kv_compact` for these caches: on CUDA devices it copies from the host, which no step may do."""
    if use_kernel(kv_caches):
        from redrafter_vllm.ops.kv_compact import kernel

        kernel.layer_groups(kv_caches)
