# SPDX-License-Identifier: Apache-2.0
"""Tiny random models for tests that are about mechanics, not about text."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from redrafter_vllm.drafter import Drafter, DrafterConfig

VOCAB = 320
HIDDEN = 64


def save_random_llama(path: Path, *, vocab_size: int = VOCAB, seed: int = 0, **overrides: object) -> Path:
    """A random two-layer Llama with grouped queries whose logits are spread enough to have no ties."""
    set_seed(seed)
    shape = dict(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(LlamaConfig(**{**shape, **overrides})).save_pretrained(path)
    return path


def save_random_drafter(path: Path, *, vocab_size: int = VOCAB, hidden_size: int = HIDDEN, seed: int = 0) -> Path:
    """A drafter that knows nothing of its target: it exercises rejection everywhere."""
    torch.manual_seed(seed)
    drafter = Drafter(DrafterConfig(vocab_size, hidden_size, exit_dim=2 * hidden_size, num_draft_layers=1))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drafter.save_pretrained(path)
    return path
