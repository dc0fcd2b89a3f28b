# SPDX-License-Identifier: Apache-2.0
"""Which requests get a chain instead of a tree."""

from vllm.sampling_params import SamplingParams


def needs_chain(params: SamplingParams | None) -> bool:
    """Whether a request's logits depend on the order of its earlier tokens.

    vLLM applies these row by row and takes the rows before as the tokens before, which is exact for a chain and wrong
    for siblings.
    """
    if params is None:
        return True
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
        or params.bad_words
        or params.structured_outputs is not None
        or params.thinking_token_budget is not None
    )
