# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters on the target: each request gets the tokens of plain vLLM with its adapter.

The drafter is not adapted: it uses the embedding of the base model.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, generate, params, random_prompts, runner, tokens
from tests.engine.scripted import scripted_trees
from tests.models import HIDDEN, VOCAB

# On a CPU vLLM applies the last slot to requests without an adapter, so that one slot stays empty.
LORA = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}

LAYERS = {"self_attn.q_proj": (64, 128), "self_attn.v_proj": (64, 64), "mlp.down_proj": (128, 64)}
HEAD = ("lm_head.lora_A.weight", (4, HIDDEN)), ("lm_head.lora_B.weight", (VOCAB, 4))
EMBEDDING = (
    ("model.embed_tokens.lora_embedding_A", (4, VOCAB)),
    ("model.embed_tokens.lora_embedding_B", (HIDDEN, 4)),
)


def save_adapter(path: Path, seed: int, *, vocabulary: bool) -> Path:
    """A random adapter as PEFT stores it; with `vocabulary`, on embedding and LM head as well."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(2):
        for name, (inputs, outputs) in LAYERS.items():
            shapes[f"model.layers.{layer}.{name}.lora_A.weight"] = (4, inputs)
            shapes[f"model.layers.{layer}.{name}.lora_B.weight"] = (outputs, 4)
    modules = [name.split(".")[-1] for name in LAYERS]
    if vocabulary:
        shapes |= dict((*HEAD, *EMBEDDING))
        modules += ["lm_head", "embed_tokens"]
    generator = torch.Generator().manual_seed(seed)
    path.mkdir()
    save_file(
        {f"base_model.model.{name}": torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()},
        path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": modules, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """No adapter, one on the layers, one on embedding and LM head as well."""
    from vllm.lora.request import LoRARequest

    root = tmp_path_factory.mktemp("lora")
    layers, everywhere = save_adapter(root / "a", 1, vocabulary=False), save_adapter(root / "b", 2, vocabulary=True)
    return [None, LoRARequest("layers", 1, str(layers)), LoRARequest("everywhere", 2, str(everywhere))]


@pytest.mark.parametrize("speculative", [TREE, CHAIN], ids=["tree", "chain"])
def test_adapters_mixed_in_a_batch(
    make_engine: MakeEngine, random_target: Path, adapters: list[Any], speculative: dict[str, Any]
) -> None:
    plain, ours = make_engine(random_target, **LORA), make_engine(random_target, speculative, **LORA)
    prompts = random_prompts(6, VOCAB, longest=150)
    # Every adapter greedy and seeded.
    sampling = [params(temperature=0.8 * (i // 3), seed=i, ignore_eos=True, max_tokens=32) for i in range(6)]
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]

    expected = tokens(plain.generate(requests, sampling, lora_request=adapters * 2, use_tqdm=False))
    truths = {tuple(prompt): [*prompt, *out[0]] for prompt, out in zip(prompts, expected, strict=True)}
    with scripted_trees(ours, truths):
        outputs = tokens(ours.generate(requests, sampling, lora_request=adapters * 2, use_tqdm=False))
    assert outputs == expected

    base = tokens(generate(make_engine(random_target), prompts, sampling))
    changed = [own != bare for own, bare in zip(expected, base, strict=True)]
    assert changed == [False, True, True] * 2


def test_the_drafter_keeps_the_base_embedding(
    make_engine: MakeEngine, random_target: Path, adapters: list[Any]
) -> None:
    ours = make_engine(random_target, TREE, **LORA)
    prompt = {"prompt_token_ids": [5, 6, 7]}
    ours.generate([prompt], params(max_tokens=8), lora_request=adapters[2], use_tqdm=False)
    with safe_open(random_target / "model.safetensors", framework="pt") as weights:
        assert torch.equal(runner(ours).speculator.embedding, weights.get_tensor("model.embed_tokens.weight"))
