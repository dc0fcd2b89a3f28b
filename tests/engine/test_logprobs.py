# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of emitted tokens and of prompts: those of plain vLLM, for any accepted path."""

from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.integration.worker import sampler
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, params, random_prompts, tokens
from tests.engine.scripted import run_both
from tests.engine.watch import watched
from tests.models import VOCAB

# Trees and chains, with and without log-probabilities, in one batch.
KINDS: list[dict[str, Any]] = [
    {"logprobs": 0},
    {"logprobs": 1},
    {"logprobs": 5, "temperature": 0.8},
    {},
    {"logprobs": 5, "temperature": 0.9, "top_k": 30, "top_p": 0.9},
    {"logprobs": 3, "presence_penalty": 0.8, "bad_words": True},
    {"logprobs": 2, "prompt_logprobs": 3},
    {"prompt_logprobs": 0, "temperature": 0.8},
    {"logprobs": 4, "repetition_penalty": 1.3, "temperature": 0.7, "prompt_logprobs": 5},
    {"logprobs": -1, "min_p": 0.05, "temperature": 0.9},
    {"logprob_token_ids": [3, 300, 17], "logit_bias": {17: 4.0}},
    {"logprobs": 2, "flat_logprobs": True, "frequency_penalty": 0.4},
]


def sampling_of(index: int, kind: dict[str, Any]) -> Any:
    kind = {"temperature": 0.0, "seed": index, "ignore_eos": True, "max_tokens": 24, **kind}
    bad_words = kind.pop("bad_words", False)
    own = params(**kind)
    if bad_words:
        own.bad_words, own._bad_words_token_ids = ["given by their ids"], [[5, 6], [7]]
    return own


def assert_same_scores(own: Any, theirs: Any) -> None:
    """Per position the same tokens, and scores equal up to rounding, which may swap ranks in the tail."""
    assert (own is None) == (theirs is None)
    for position, wanted in zip(own or [], theirs or [], strict=True):
        assert (position is None) == (wanted is None)  # a prompt's first token has none
        assert (position or {}).keys() == (wanted or {}).keys()
        for token, entry in (wanted or {}).items():
            assert position[token].logprob == pytest.approx(entry.logprob, abs=2e-4)
            assert abs(position[token].rank - entry.rank) <= (entry.rank > 20)


@pytest.mark.parametrize(
    ("mode", "chunk_rows"),
    [
        ("raw_logprobs", None),
        ("processed_logprobs", None),
        ("raw_logits", None),
        ("processed_logits", None),
        ("raw_logprobs", 20),
        ("processed_logprobs", 40),
    ],
)
def test_logprobs_in_a_mixed_batch(
    make_engine: MakeEngine,
    random_target: Path,
    mode: str,
    chunk_rows: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows at once and, as for a large vocabulary, one or two requests at a time."""
    if chunk_rows is not None:
        monkeypatch.setattr(sampler, "get_max_chunk_logits", lambda vocab_size: chunk_rows)
    options = {"logprobs_mode": mode, "max_logprobs": -1}
    plain, tree = make_engine(random_target, **options), make_engine(random_target, TREE, **options)
    prompts = random_prompts(len(KINDS), VOCAB)
    each = [sampling_of(index, kind) for index, kind in enumerate(KINDS)]
    with watched() as watch:
        expected, outputs = run_both(plain, tree, prompts, each)
    assert tokens(outputs) == tokens(expected)
    for kind, output, wanted in zip(KINDS, outputs, expected, strict=True):
        own, theirs = output.outputs[0], wanted.outputs[0]
        assert (theirs.logprobs is not None) == bool(kind.keys() & {"logprobs", "logprob_token_ids"})
        assert_same_scores(own.logprobs, theirs.logprobs)
        assert (wanted.prompt_logprobs is not None) == ("prompt_logprobs" in kind)
        assert_same_scores(output.prompt_logprobs, wanted.prompt_logprobs)
        if theirs.cumulative_logprob is not None:
            assert own.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=5e-3)
    assert all(drafting.accepted > 0 for drafting in watch.in_order(outputs))


def test_logprobs_on_chains(make_engine: MakeEngine, random_target: Path) -> None:
    """One beam: the rows of the path are the rows that vLLM expects."""
    chain = {"method": "redrafter", "beam_width": 1, "beam_length": 3}
    plain, other = make_engine(random_target), make_engine(random_target, chain)
    prompts = random_prompts(4, VOCAB)
    each = [sampling_of(index, {"logprobs": 5, **kind}) for index, kind in enumerate([{}, {"temperature": 0.8}] * 2)]
    with watched() as watch:
        expected, outputs = run_both(plain, other, prompts, each)
    assert tokens(outputs) == tokens(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert_same_scores(output.outputs[0].logprobs, wanted.outputs[0].logprobs)
    assert all(drafting.accepted > 0 and drafting.branching == 0 for drafting in watch.in_order(outputs))
