# SPDX-License-Identifier: Apache-2.0
"""Targets of other families, types and cache geometries: same tokens as plain vLLM; or a refusal with the reason."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, generate, params, random_prompts, tokens
from tests.engine.scripted import assert_identical, run_both
from tests.models import VOCAB, save_random_drafter, save_random_llama

pytestmark = pytest.mark.engine

SHAPE: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
)

# head_dim 32: vLLM's own CPU attention, which plain vLLM compares with, takes no smaller one.
FAMILIES: dict[str, PretrainedConfig] = {
    "mistral": MistralConfig(**SHAPE, head_dim=32, sliding_window=None),
    "qwen2": Qwen2Config(**{**SHAPE, "hidden_size": 128}, use_sliding_window=False),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32, use_sliding_window=False),
}


def save(config: PretrainedConfig, path: Path) -> Path:
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    save_random_drafter(path / "redrafter", hidden_size=config.hidden_size)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_families(make_engine: MakeEngine, tmp_path: Path, family: str) -> None:
    target = save(FAMILIES[family], tmp_path / family)
    assert_identical(make_engine(target), make_engine(target, TREE))


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 64, 256])
def test_block_sizes(make_engine: MakeEngine, random_target: Path, block_size: int) -> None:
    assert_identical(make_engine(random_target), make_engine(random_target, TREE, block_size=block_size))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_head_groups(make_engine: MakeEngine, tmp_path: Path, kv_heads: int) -> None:
    target = save_random_llama(tmp_path / "target", num_key_value_heads=kv_heads, tie_word_embeddings=kv_heads == 1)
    save_random_drafter(target / "redrafter")
    assert_identical(make_engine(target), make_engine(target, TREE))


def test_bf16(make_engine: MakeEngine, random_target: Path) -> None:
    """bf16 rounds a row differently in a batch of another size, so tokens are compared where the choice is clear."""
    options = {"dtype": "bfloat16"}
    plain, tree = make_engine(random_target, **options), make_engine(random_target, TREE, **options)
    prompts = random_prompts(8, VOCAB, longest=120)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=32, logprobs=2)
    expected, outputs = run_both(plain, tree, prompts, sampling)
    compared = 0
    for output, wanted in zip(outputs, expected, strict=True):
        own, theirs = output.outputs[0], wanted.outputs[0]
        for position, (token, reference) in enumerate(zip(own.token_ids, theirs.token_ids, strict=True)):
            if token != reference:
                scores = sorted((entry.logprob for entry in theirs.logprobs[position].values()), reverse=True)
                assert scores[0] - scores[1] < 0.1, "a clear choice differs"
                break
            compared += 1
    assert compared > 100


REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "sliding window": (MistralConfig(**SHAPE, head_dim=32, sliding_window=64), "sliding-window"),
    "mixed layers": (
        Qwen2Config(**{**SHAPE, "hidden_size": 128}, use_sliding_window=True, sliding_window=64, max_window_layers=1),
        "sliding-window",
    ),
    "state space": (
        MambaConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, architectures=["MambaForCausalLM"]),
        "no attention",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_targets(make_engine: MakeEngine, tmp_path: Path, kind: str) -> None:
    config, reason = REFUSED[kind]
    # Only the configuration: a refusal comes before anything is loaded.
    config.save_pretrained(tmp_path)
    if not config.architectures:
        config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
        config.save_pretrained(tmp_path)
    save_random_drafter(tmp_path / "redrafter")
    with pytest.raises(ValueError, match=reason):
        make_engine(tmp_path, TREE)


def test_a_chain_serves_sliding_windows(make_engine: MakeEngine, tmp_path: Path) -> None:
    target = save(MistralConfig(**SHAPE, head_dim=32, sliding_window=64), tmp_path / "target")
    prompts = random_prompts(4, VOCAB, longest=150)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=24)
    expected = tokens(generate(make_engine(target), prompts, sampling))
    assert tokens(generate(make_engine(target, CHAIN), prompts, sampling)) == expected
