# SPDX-License-Identifier: Apache-2.0
"""The recurrence without its matrix product: the tokens' rows are joined before it or added after it."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.recurrence import reference

__all__ = ["add_tokens", "tokens_and_state"]

add_tokens = dispatch(reference.add_tokens)
tokens_and_state = dispatch(reference.tokens_and_state)
