# SPDX-License-Identifier: Apache-2.0
"""Tiny random models, for tests that need no meaningful text."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter

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
    """A random drafter, whose drafts are rejected everywhere."""
    torch.manual_seed(seed)
    drafter = Drafter(DrafterConfig(vocab_size, hidden_size, exit_dim=2 * hidden_size, num_draft_layers=1))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drafter.save_pretrained(path)
    return path


# Settings of a generation_config.json with which greedy decoding would not emit the top-1 token.
# Written to the target's folder directly, because transformers refuses to store some of them.
HOSTILE_GENERATION = {
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.2,
    "typical_p": 0.3,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "num_return_sequences": 2,
    "length_penalty": 3.0,
    "min_length": 200,
    "min_new_tokens": 40,
    "max_length": 30,
    "max_new_tokens": 3,
    "max_time": 1e-6,
    "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(200, 260)),
    "bad_words_ids": [[5], [6], [7, 8]],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 10,
    "exponential_decay_length_penalty": [1, 2.0],
    "sequence_bias": [[[11], 20.0]],
    "renormalize_logits": True,
    "return_dict_in_generate": True,
    "output_scores": True,
    "prompt_lookup_num_tokens": 3,
}
