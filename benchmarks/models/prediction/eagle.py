# SPDX-License-Identifier: Apache-2.0
"""The work of an EAGLE head, a decoder layer that drafts token after token, counted as that of our drafter is."""

from math import prod

from redrafter_vllm.predict.shapes import LlamaShape
from redrafter_vllm.predict.work import LAYER_KERNELS, NUMBER_BYTES, Work, cache_bytes

PASS_KERNELS = 6  # beside the layer: embedding, joining it with the hidden state, norm, output layer, choosing, inputs
EAGLE3_TOKENS = 32_000  # of the draft vocabulary of yuhuili/EAGLE3-LLaMA3.1-Instruct-8B


def eagle_round(
    shape: LlamaShape, drafts: int, requests: int, context: int, parallel: int, *, is_eagle3: bool = False
) -> Work:
    """A chain of `drafts` tokens for each request; vLLM splits the head over the GPUs as it does the target.

    EAGLE joins the hidden state with the token before the layer, in every pass. EAGLE-3 joins three hidden states once
    and has queries, keys and values of double input.
    """
    hidden = shape.hidden_size
    numbers = sum(prod(size) for name, size in shape.tensors.items() if name.startswith("model.layers.0."))
    if is_eagle3:
        numbers += hidden * shape.head_dim * (shape.num_attention_heads + 2 * shape.num_key_value_heads)
        numbers += hidden * EAGLE3_TOKENS
        once = 3 * hidden * hidden
    else:
        numbers += 2 * hidden * hidden + hidden * shape.vocab_size
        once = 0
    cache = requests * context * cache_bytes(shape) / shape.num_hidden_layers
    return Work(
        bytes=(NUMBER_BYTES * (drafts * numbers + once) + drafts * cache) / parallel,
        operations=2 * requests * (drafts * numbers + once) / parallel,
        kernels=drafts * (LAYER_KERNELS + PASS_KERNELS),
        exchanges=4 * drafts,
        exchanged=NUMBER_BYTES * 3 * drafts * requests * hidden,
    )
