# SPDX-License-Identifier: Apache-2.0
"""Which requests get a chain instead of a tree, by their sampling parameters."""

from vllm.sampling_params import SamplingParams


def needs_chain(params: SamplingParams | None) -> bool:
    """Whether a request's logits depend on its earlier tokens in a way that this plugin cannot follow along a path.

    vLLM then uses the rows before as the tokens before, which is exact for a chain and wrong for siblings. Penalties
    and bad words follow a node's path (`history.py`); custom processors report it when they get the request.
    """
    if params is None:
        return True
    return params.structured_outputs is not None or params.thinking_token_budget is not None
