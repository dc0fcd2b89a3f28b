# SPDX-License-Identifier: Apache-2.0
"""Size of an engine's key-value cache."""

from benchmarks.models.roofline import DTYPE_BYTES
from redrafter_vllm.predict.shapes import find_shape

PAGE = 128  # tokens; vLLM's largest page for these targets


def kv_cache_bytes(target: str, requests: int, tokens: int, dtype: str) -> int:
    """Enough for `requests` of `tokens` each to run at once to their end, and 8 pages more.

    Raises:
        ShapeError: The target has no shape that is known here.
    """
    shape = find_shape(target)
    numbers = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    pages = requests * -(-tokens // PAGE) + 8
    return pages * PAGE * numbers * DTYPE_BYTES[dtype]
