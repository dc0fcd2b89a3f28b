# SPDX-License-Identifier: Apache-2.0
"""vLLM measures memory by a run without attention metadata, and samples from its output."""

import torch


def test_attention_without_metadata_gives_numbers() -> None:
    from redrafter_vllm.integration.attention.impl import TreeForward

    class Base:
        def __init__(self, *args: object) -> None: ...

    class Attention(TreeForward, Base): ...

    attention = Attention(num_heads=2, head_size=4, scale=0.5, num_kv_heads=1)
    query, key = torch.ones(3, 2, 4), torch.ones(3, 1, 4)
    output = torch.full((3, 2, 4), float("nan"))
    attention.forward(torch.nn.Identity(), query, key, key, torch.empty(0), None, output)
    assert torch.equal(output, torch.zeros(3, 2, 4))
