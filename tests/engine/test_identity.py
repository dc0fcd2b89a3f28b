# SPDX-License-Identifier: Apache-2.0
"""Identity with plain vLLM on real text: a trained and a random drafter, greedy and seeded, batch 1 and 8.

With copies of the text in the trees, and without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import AutoTokenizer

from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split
from redrafter_vllm.integration.worker.sampler import TreeSampler
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, tokens
from tests.models import save_random_drafter

NUM_PROMPTS = 64
SAMPLING: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "seeded": {"temperature": 0.8}}


@pytest.fixture(scope="module")
def prompts(asset: Path) -> list[list[int]]:
    """Prompts of mixed length from files that the target was not trained on; a quarter continue another prompt."""
    tokenizer = AutoTokenizer.from_pretrained(asset)
    texts = extract_prompts(split(load_corpus())[1], NUM_PROMPTS, max_chars=1100)
    texts[3::4] = [texts[index] + "\n" + texts[index + 1] for index in range(2, NUM_PROMPTS - 1, 4)]
    return [tokenizer.encode(text)[:400] for text in texts]


@pytest.fixture(scope="module")
def drafters(asset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    shape = {"vocab_size": 2048, "hidden_size": 256}
    return {
        "trained": asset / "redrafter",
        "random": save_random_drafter(tmp_path_factory.mktemp("drafter") / "random", **shape),
    }


@pytest.fixture(scope="module")
def expected(make_engine: MakeEngine, asset: Path, prompts: list[list[int]]) -> dict[tuple[str, str], Any]:
    """Plain vLLM's tokens, for each way of sampling and each batch size."""
    plain = make_engine(asset)
    return {
        (mode, batch): tokens(generate(plain, prompts, sampling(mode), one_by_one=batch == "one"))
        for mode in SAMPLING
        for batch in ("one", "eight")
    }


def sampling(mode: str) -> list[Any]:
    return [params(seed=1000 + index, max_tokens=32, **SAMPLING[mode]) for index in range(NUM_PROMPTS)]


@pytest.mark.parametrize(("drafter", "copies"), [("trained", True), ("random", False), ("random", True)])
@pytest.mark.parametrize("mode", SAMPLING)
@pytest.mark.parametrize("batch", ["one", "eight"])
def test_tokens_are_those_of_plain_vllm(
    make_engine: MakeEngine,
    asset: Path,
    prompts: list[list[int]],
    drafters: dict[str, Path],
    expected: dict[tuple[str, str], Any],
    drafter: str,
    copies: bool,
    mode: str,
    batch: str,
) -> None:
    tree = make_engine(asset, {**TREE, "model": str(drafters[drafter]), "prompt_lookup": copies})
    with emitted_per_step() as emitted:
        outputs = tokens(generate(tree, prompts, sampling(mode), one_by_one=batch == "one"))
    assert outputs == expected[mode, batch]
    # Both kinds of step must have happened: long paths with the trained drafter or copies, rejection without either.
    mean = sum(emitted) / len(emitted)
    if drafter == "trained":
        assert mean > 1.4
    else:
        assert (mean > (1.2 if mode == "greedy" else 1.03)) if copies else mean < 1.2


@contextmanager
def emitted_per_step() -> Iterator[list[int]]:
    """Collects the tokens that each request emitted in each verification step."""
    emitted: list[int] = []
    verify = TreeSampler.__call__

    def count(self: TreeSampler, *args: Any) -> Any:
        output = verify(self, *args)
        emitted.extend(output.num_sampled.tolist())
        return output

    with patch.object(TreeSampler, "__call__", count):
        yield emitted
