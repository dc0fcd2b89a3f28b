# SPDX-License-Identifier: Apache-2.0
"""Requests with text: stop strings and the end of the text; the answers of plain vLLM."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, tokens
from tests.engine.scripted import run_both

TEXTS = ["def read(self, size=-1):\n    ", "import os\n\n\nclass ", "    for key, value in ", "try:\n    from "]
FAST = {**TREE, "beam_length": 6, "num_speculative_tokens": 24}


@pytest.fixture(scope="module")
def engines(make_engine: MakeEngine, asset: Path) -> tuple[Any, Any]:
    options = {"skip_tokenizer_init": False}
    return make_engine(asset, **options), make_engine(asset, {**FAST, "model": str(asset / "redrafter")}, **options)


@pytest.fixture(scope="module")
def prompts(engines: tuple[Any, Any]) -> list[list[int]]:
    tokenizer = engines[0].get_tokenizer()
    return [tokenizer.encode(text) for text in TEXTS]


def text_params(**options: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "max_tokens": 48, **options})


def assert_same_answers(expected: list[Any], outputs: list[Any]) -> None:
    assert tokens(outputs) == tokens(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        own, theirs = output.outputs[0], wanted.outputs[0]
        assert (own.text, own.finish_reason, own.stop_reason) == (theirs.text, theirs.finish_reason, theirs.stop_reason)


def test_stop_strings_inside_an_accepted_path(engines: tuple[Any, Any], prompts: list[list[int]]) -> None:
    plain, tree = engines
    full = [output.outputs[0].text for output in plain.generate(to_requests(prompts), text_params(), use_tqdm=False)]
    sampling = [text_params(stop=[text[12:16]], include_stop_str_in_output=bool(i % 2)) for i, text in enumerate(full)]
    for seed in range(3):
        expected, outputs = run_both(plain, tree, prompts, sampling, seed)
        assert_same_answers(expected, outputs)
        assert all(output.outputs[0].finish_reason == "stop" for output in outputs)


def test_end_of_text_inside_an_accepted_path(engines: tuple[Any, Any], prompts: list[list[int]]) -> None:
    """The model rarely ends a text within so few tokens: a bias makes it likely, not certain."""
    plain, tree = engines
    eos = plain.get_tokenizer().eos_token_id
    sampling = [text_params(temperature=0.9, seed=seed, logit_bias={eos: 9.0}, max_tokens=60) for seed in range(4)]
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert_same_answers(expected, outputs)
    assert any(output.outputs[0].finish_reason == "stop" and len(output.outputs[0].token_ids) > 2 for output in outputs)


def to_requests(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]
