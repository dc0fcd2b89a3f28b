# SPDX-License-Identifier: Apache-2.0
"""Serving with a trimmed drafter: no extra option, the same tokens as plain vLLM."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split
from redrafter_training.data.vocab_mapping import choose_draft_vocabulary, token_frequencies
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, runner, tokens

NUM_PROMPTS = 24
DRAFT_VOCAB = 400


@pytest.fixture(scope="module")
def prompts(asset: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(asset)
    texts = extract_prompts(split(load_corpus())[1], NUM_PROMPTS, max_chars=600)
    return [tokenizer.encode(text)[:200] for text in texts]


@pytest.fixture(scope="module")
def trimmed(asset: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed drafter, trimmed to the most frequent tokens of the prompts."""
    full = Drafter.from_pretrained(asset / "redrafter")
    frequencies = token_frequencies([torch.tensor(prompt) for prompt in prompts], [], 0.0, full.config.vocab_size)
    kept = choose_draft_vocabulary(frequencies, DRAFT_VOCAB).tokens
    drafter = Drafter(replace(full.config, draft_vocab_size=DRAFT_VOCAB))
    drafter.set_draft_tokens(kept)
    output = f"lm_head.{full.config.num_draft_layers}.weight"
    tensors = full.state_dict()
    drafter.load_state_dict(tensors | {"d2t": drafter.d2t, output: tensors[output][kept]})
    path = tmp_path_factory.mktemp("trimmed") / "redrafter"
    drafter.save_pretrained(path)
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "seeded"])
def test_tokens_are_those_of_plain_vllm(
    make_engine: MakeEngine, asset: Path, prompts: list[list[int]], trimmed: Path, temperature: float
) -> None:
    tree = make_engine(asset, {**TREE, "model": str(trimmed)}, disable_log_stats=False)
    drafter: Drafter = runner(tree).speculator.drafter
    assert drafter.config.output_size == DRAFT_VOCAB
    sampling = [params(seed=index, max_tokens=32, temperature=temperature) for index in range(NUM_PROMPTS)]
    before = counters(tree)
    outputs = tokens(generate(tree, prompts, sampling))
    expected = tokens(generate(make_engine(asset), prompts, sampling))
    assert outputs == expected
    drafts, accepted = (now - then for now, then in zip(counters(tree), before, strict=True))
    # With a wrong map almost nothing is accepted; and no draft may be a token that was removed.
    # With a map shifted by one, 2 of 742 draft tokens were accepted.
    assert accepted / drafts > 0.3
    kept = set(drafter.draft_tokens.tolist()) if drafter.draft_tokens is not None else set()
    assert any(token not in kept for completions in outputs for ids in completions for token in ids)
    assert set(runner(tree).speculator.rows.tokens.flatten().tolist()) <= kept | {0}


def test_more_beams_than_draft_tokens(make_engine: MakeEngine, asset: Path, tmp_path: Path) -> None:
    config = DrafterConfig(2048, 256, exit_dim=512, num_draft_layers=0, draft_vocab_size=3)
    Drafter(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"beam_width=4 is out of range; the drafter at .* from 3 tokens only"):
        make_engine(asset, {**TREE, "model": str(tmp_path)})


def counters(llm: Any) -> tuple[int, int]:
    values = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    return values["vllm:spec_decode_num_drafts"], values["vllm:spec_decode_num_accepted_tokens"]
