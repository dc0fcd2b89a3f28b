# SPDX-License-Identifier: Apache-2.0
"""Targets of other families, dtypes and cache layouts: the tokens of plain vLLM, or a refusal with the reason."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    DeepseekV2Config,
    Gemma2Config,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    set_seed,
)

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, params, random_prompts
from tests.engine.scripted import assert_identical, run_both, same_clear_choices
from tests.models import VOCAB, save_random_drafter, save_random_llama

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

WIDE = {**SHAPE, "hidden_size": 128}
OLD_NAMES: dict[str, Any] = dict(
    vocab_size=VOCAB, n_layer=2, n_head=4, initializer_range=0.2, bos_token_id=1, eos_token_id=2
)
EXPERTS: dict[str, Any] = dict(num_experts_per_tok=2, pad_token_id=0)

# head_dim 32: the smallest that vLLM's own CPU attention, used by the plain engine, supports.
FAMILIES: dict[str, PretrainedConfig] = {
    "mistral": MistralConfig(**SHAPE, head_dim=32, sliding_window=None),
    "qwen2": Qwen2Config(**WIDE, use_sliding_window=False),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32, use_sliding_window=False),
    # Scaled embeddings; a scaled LM head; partial rotation; layers side by side; learned positions.
    "gemma": GemmaConfig(**SHAPE, head_dim=32),
    "granite": GraniteConfig(**WIDE, logits_scaling=2.0, embedding_multiplier=3.0),
    "phi3": Phi3Config(**WIDE, pad_token_id=0),
    "glm4": Glm4Config(**SHAPE, head_dim=32, pad_token_id=0),
    "cohere": CohereConfig(**WIDE, logit_scale=0.5),
    "gpt-neox": GPTNeoXConfig(**{name: value for name, value in WIDE.items() if name != "num_key_value_heads"}),
    "gpt2": GPT2Config(**OLD_NAMES, n_embd=128, n_positions=1024),
}

MIXTURES: dict[str, tuple[PretrainedConfig, dict[str, Any]]] = {
    "mixtral": (MixtralConfig(**WIDE, **EXPERTS, num_local_experts=4), TREE),
    "qwen3-moe": (Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=32, num_experts=4, moe_intermediate_size=64), TREE),
    # Attention sinks and sliding windows.
    "gpt-oss": (GptOssConfig(**SHAPE, **EXPERTS, head_dim=32, num_local_experts=4, sliding_window=64), CHAIN),
}


def save(config: PretrainedConfig, path: Path) -> Path:
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if config.model_type == "gemma2":
        # Random layers have no effect against embeddings of this size, and the model would repeat its last token.
        model.get_input_embeddings().weight.data.mul_(0.1)
    model.save_pretrained(path)
    save_random_drafter(path / "redrafter", hidden_size=config.hidden_size)
    return path


@pytest.fixture
def transformers_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For some families vLLM uses the class of transformers and changes it in this process to compile it."""
    backend = "vllm.model_executor.models.transformers.base"
    monkeypatch.setattr(f"{backend}.support_torch_compile", lambda **_: lambda cls: cls)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(make_engine: MakeEngine, tmp_path: Path, transformers_left_alone: None, family: str) -> None:
    target = save(FAMILIES[family], tmp_path / family)
    assert_identical(make_engine(target), make_engine(target, TREE))


@pytest.fixture
def expert_parallel_group(make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines share vLLM's process groups, and a dense model's engine creates none for experts."""
    from vllm.distributed import parallel_state

    make_engine(random_target)
    if parallel_state._EP is None:
        monkeypatch.setattr(parallel_state, "_EP", parallel_state._TP)


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts(make_engine: MakeEngine, tmp_path: Path, expert_parallel_group: None, family: str) -> None:
    config, speculative = MIXTURES[family]
    target = save(config, tmp_path / family)
    assert_identical(make_engine(target), make_engine(target, speculative))


@pytest.mark.parametrize("block_size", [16, 48, 64, 256])
def test_block_sizes(make_engine: MakeEngine, random_target: Path, block_size: int) -> None:
    assert_identical(make_engine(random_target), make_engine(random_target, TREE, block_size=block_size))


@cpu_only
def test_a_block_size_that_vllms_cpu_attention_does_not_have(make_engine: MakeEngine, random_target: Path) -> None:
    with pytest.raises(ValueError, match="CpuTreeBackend: block_size not supported"):
        make_engine(random_target, TREE, block_size=24)


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
    assert same_clear_choices(*run_both(plain, tree, prompts, sampling)) > 100


REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "sliding window": (MistralConfig(**SHAPE, head_dim=32, sliding_window=64), "sliding-window"),
    "mixed layers": (
        Qwen2Config(**WIDE, use_sliding_window=True, sliding_window=64, max_window_layers=1),
        "sliding-window",
    ),
    "soft cap": (Gemma2Config(**SHAPE, head_dim=32), "caps its attention logits"),
    "ALiBi": (BloomConfig(**OLD_NAMES, hidden_size=128), "ALiBi"),
    "MLA": (DeepseekV2Config(**WIDE), "MLA"),
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
    save_random_drafter(tmp_path / "redrafter", hidden_size=config.hidden_size)
    with pytest.raises(ValueError, match=reason):
        make_engine(tmp_path, TREE)


CHAINS_ONLY: dict[str, PretrainedConfig] = {
    "sliding window": MistralConfig(**SHAPE, head_dim=32, sliding_window=64),
    "soft cap": Gemma2Config(**SHAPE, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "ALiBi": BloomConfig(**OLD_NAMES, hidden_size=128),
}


@pytest.mark.parametrize("kind", CHAINS_ONLY)
def test_chains_serve_what_trees_cannot(make_engine: MakeEngine, tmp_path: Path, kind: str) -> None:
    target = save(CHAINS_ONLY[kind], tmp_path / "target")
    assert_identical(make_engine(target), make_engine(target, CHAIN))


@cpu_only
def test_a_quantised_cache(make_engine: MakeEngine, random_target: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tree attention cannot serve this model .*kv_cache_dtype not supported.*draft"
    ):
        make_engine(random_target, TREE, kv_cache_dtype="fp8")
    options = {"kv_cache_dtype": "fp8"}
    assert_identical(make_engine(random_target, **options), make_engine(random_target, CHAIN, **options))
