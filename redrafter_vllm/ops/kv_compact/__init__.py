# SPDX-License-Identifier: Apache-2.0
"""Move the keys and values of an accepted path to the slots that plain decoding would have used."""

from redrafter_vllm.ops.kv_compact.reference import kv_compact

__all__ = ["kv_compact"]
