# SPDX-License-Identifier: Apache-2.0
"""What stands around the product of the recurrence: the tokens' rows before it or behind it."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.recurrence import reference

__all__ = ["add_tokens", "tokens_and_state"]

add_tokens = dispatch(reference.add_tokens)
tokens_and_state = dispatch(reference.tokens_and_state)
