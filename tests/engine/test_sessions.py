# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions answer as plain vLLM's do: every part, and whoever runs beside them."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.differential.leaks import leaks, watched_rows
from tests.engine.differential.stream import settle
from tests.engine.generation import CHAIN, TREE, generate, params, tokens
from tests.engine.scripted import scripted_trees
from tests.engine.sessions import Part, as_prompts, run_sessions, truths
from tests.models import VOCAB

pytestmark = pytest.mark.engine

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tree": (TREE, {}),
    "tree-async": (TREE, {"async_scheduling": True}),
    "chain": (CHAIN, {}),
    "chain-async": (CHAIN, {"async_scheduling": True}),
}


def make_sessions(seed: int, count: int = 5, **options: Any) -> dict[str, list[Part]]:
    """Parts of one token and of many, answers of one token and of many, greedy and seeded in turns."""
    rng = random.Random(seed)
    sessions: dict[str, list[Part]] = {}
    for index in range(count):
        parts = []
        for turn in range(4):
            prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice([1, 1, 2, 17, 40]))]
            sampling = params(
                **{
                    "temperature": 0.8 * ((index + turn) % 2),
                    "seed": 10 * index + turn,
                    "max_tokens": rng.choice([1, 2, 3, 7, 19]),
                    "ignore_eos": True,
                    **options,
                }
            )
            parts.append(Part(prompt, sampling))
        sessions[f"session {index}"] = parts
    return sessions


@pytest.mark.parametrize("ahead", [False, True], ids=["in turns", "ahead"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_plain(make_engine: MakeEngine, random_target: Path, variant: str, ahead: bool) -> None:
    spec, options = VARIANTS[variant]
    plain, other = make_engine(random_target), make_engine(random_target, spec, **options)
    for seed in range(4):
        sessions = make_sessions(seed)
        expected = run_sessions(plain, sessions)
        with scripted_trees(other, truths(sessions, expected), seed=seed) as drawn, watched_rows(other) as strangers:
            answers = run_sessions(other, sessions, ahead=ahead)
        assert answers == expected
        assert drawn and not strangers
        settle(other)
        assert not leaks(other)
