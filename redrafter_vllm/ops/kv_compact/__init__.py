# SPDX-License-Identifier: Apache-2.0
"""Move the keys and values of an accepted path to the slots that plain decoding would have used."""

from collections.abc import Sequence

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.kv_compact import reference

__all__ = ["kv_compact", "prepare"]


def kv_compact(kv_caches: Sequence[Tensor], path: Tensor, root_token: Tensor, slots: Tensor) -> None:
    """See `reference.kv_compact`; on CUDA devices by a kernel."""
    if use_kernel(path):
        from redrafter_vllm.ops.kv_compact import kernel

        kernel.kv_compact(kv_caches, path, root_token, slots)
    else:
        reference.kv_compact(kv_caches, path, root_token, slots)


def prepare(kv_caches: Sequence[Tensor]) -> None:
    """What `kv_compact` needs once for these caches: on CUDA devices a copy from the host, which no step may make."""
    if any(use_kernel(cache) for cache in kv_caches):
        from redrafter_vllm.ops.kv_compact import kernel

        kernel.layer_groups(kv_caches)
