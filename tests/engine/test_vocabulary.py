# SPDX-License-Identifier: Apache-2.0
"""Tied embeddings and padded vocabularies."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, runner, tokens
from tests.engine.scripted import assert_identical, run_both
from tests.models import VOCAB, save_random_drafter, save_random_llama

PADDED = VOCAB + 11


def stored_embedding(target: Path) -> torch.Tensor:
    with safe_open(target / "model.safetensors", framework="pt") as weights:
        return weights.get_tensor("model.embed_tokens.weight")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_the_drafter_shares_the_embedding(make_engine: MakeEngine, tmp_path: Path, tied: bool) -> None:
    """vLLM pads the table to a multiple of 64, here to 384 rows; the drafter gets those of the vocabulary."""
    target = save_random_llama(tmp_path / "target", vocab_size=PADDED, tie_word_embeddings=tied)
    save_random_drafter(target / "redrafter", vocab_size=PADDED)
    tree = make_engine(target, TREE)
    assert_identical(make_engine(target), tree)
    model, embedding = runner(tree).model, runner(tree).speculator.embedding
    assert torch.equal(embedding, stored_embedding(target))
    assert embedding.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (embedding.data_ptr() == model.lm_head.weight.data_ptr()) == tied


def test_a_drafter_of_the_vocabulary_before_padding(make_engine: MakeEngine, tmp_path: Path) -> None:
    """The drafter does not have the target's last tokens: they are emitted, but never drafted."""
    target = save_random_llama(tmp_path / "target", vocab_size=PADDED)
    save_random_drafter(target / "redrafter", vocab_size=VOCAB)
    plain, tree = make_engine(target), make_engine(target, TREE)
    prompts = random_prompts(6, PADDED, longest=150)
    sampling = [
        # Half of the requests emit nothing else.
        params(temperature=1.0, seed=index, ignore_eos=True, logit_bias=dict.fromkeys(range(VOCAB, PADDED), bias))
        for index, bias in enumerate([0.0, 100.0] * 3)
    ]
    expected = tokens(generate(plain, prompts, sampling))
    assert tokens(generate(tree, prompts, sampling)) == expected
    assert min(expected[1][0]) >= VOCAB
    assert runner(tree).speculator.rows.tokens.max() < VOCAB
    # Trees with these tokens can still be verified.
    scripted = tokens(run_both(plain, tree, prompts, sampling)[1])
    assert scripted == expected


def test_a_vocabulary_too_small_to_be_the_targets(make_engine: MakeEngine, tmp_path: Path) -> None:
    target = save_random_llama(tmp_path / "target", vocab_size=VOCAB + 1025)
    save_random_drafter(target / "redrafter", vocab_size=VOCAB)
    with pytest.raises(ValueError, match=f"vocabulary size {VOCAB} but the target has {VOCAB + 1025}"):
        make_engine(target, TREE)
