# SPDX-License-Identifier: Apache-2.0
"""Targets of the usual model families: outputs and head compared with the model's logits."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from redrafter_training.target.lm_head import LogitRule, TargetHead, find_rule
from redrafter_training.target.model import DeferredTarget, TargetModel

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {},
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": {},
    "opt": dict(word_embed_proj_dim=32, ffn_dim=48),
    "phi": {},  # a head with a bias
    "gemma": {},
    "gemma2": dict(final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "cohere": dict(logit_scale=0.25),
    "granite": dict(logits_scaling=4.0),
}
RULES = {"gemma2": LogitRule(1.0, 3.0), "cohere": LogitRule(0.25), "granite": LogitRule(0.25)}


def build(family: str, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    shape = {**SHAPE, **FAMILIES[family], **overrides}
    if family == "gpt2":
        shape = {key: value for key, value in shape.items() if not key.startswith(("hidden", "num_", "max_"))}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    target = TargetModel(build(family))
    tokens = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = target.model(input_ids=tokens).logits
    outputs = target.outputs(tokens)
    assert torch.equal(outputs.logits, expected)
    assert outputs.hidden.shape == (2, 11, 32)
    assert torch.equal(target.hidden(tokens), outputs.hidden)
    assert torch.equal(outputs.top1_ids, expected.argmax(-1))
    kept = torch.tensor([0, 7, 49])
    assert torch.equal(target.outputs(tokens, draft_tokens=kept).logits, expected[..., kept])
    assert torch.equal(target.outputs(tokens, draft_tokens=kept).top1_ids, outputs.top1_ids)
    head = target.head()
    assert head.rule == RULES.get(family, LogitRule())
    torch.testing.assert_close(head.logits(outputs.hidden), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.restricted(kept).logits(outputs.hidden), expected[..., kept], rtol=1e-5, atol=1e-5)
    assert (head.embedding is head.weight) == bool(target.model.config.get_text_config().tie_word_embeddings)
    # The hidden states are after the last norm: the head's product alone gives the logits, and a wrong rule does not.
    assert expected.abs().max() > 1


def test_logits_beyond_the_rules_are_refused() -> None:
    model = build("llama")
    target = TargetModel(model)
    forward = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(50.0)
        return output

    model.forward = shifted
    assert target.outputs(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 50)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM changes its logits by more .* --hidden-cache"):
        target.head()


def test_rule_by_hand() -> None:
    rule = LogitRule(0.5, 2.0)
    assert rule(torch.tensor(4.0)).item() == pytest.approx(2 * 0.76159416)  # 2 tanh(1)
    with pytest.raises(ValueError, match="some model"):
        find_rule(object(), torch.ones(2, 3), torch.ones(2, 4), "some model")


def test_unusable_models_are_refused() -> None:
    narrow = build("opt", word_embed_proj_dim=16)
    narrow.lm_head = nn.Linear(32, 50, bias=False)
    with pytest.raises(ValueError, match=r"embeds tokens in 16 dimensions .* takes 32"):
        TargetModel(narrow)
    quantised = build("llama")
    quantised.lm_head.weight = nn.Parameter(torch.zeros(50, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"LM head is quantised \(int8\)"):
        TargetModel(quantised)
    offloaded = build("llama")
    offloaded.lm_head.to("meta")
    with pytest.raises(ValueError, match="moved out of memory"):
        TargetModel(offloaded)


def test_loaded_on_first_use() -> None:
    loads: list[TargetModel] = []

    def load() -> TargetModel:
        loads.append(TargetModel(build("llama")))
        return loads[-1]

    target = DeferredTarget(load)
    assert not loads
    assert target.vocab_size == 50
    assert target.outputs(torch.zeros(1, 3, dtype=torch.long)).hidden.shape == (1, 3, 32)
    assert len(loads) == 1
    target.release()
    assert len(loads) == 1
    assert target.embedding is loads[1].embedding
    with pytest.raises(AttributeError):
        target.nonsense  # noqa: B018


def test_head_moves_tied() -> None:
    weight = torch.ones(3, 2)
    moved = TargetHead(weight, None, weight).to(torch.device("meta"))
    assert moved.embedding is moved.weight
    assert moved.weight.is_meta
