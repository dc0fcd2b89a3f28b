# SPDX-License-Identifier: Apache-2.0
"""Diagrams that `redrafter evaluate` draws: how often nodes are accepted over how often that was estimated."""

import json
from pathlib import Path

from benchmarks.serving.chat.questions import chosen_prompts
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.watch.pair import Pair
from tools.pictures.pages import WORK, redrafter

QUESTIONS = 2  # of each category of MT-Bench
TREES = ("--beam-width", "4", "--max-nodes", "16", "--copies")


def reliability_greedy(pair: Pair, picture: Path) -> None:
    """Of greedy answers."""
    _draw(pair, picture, "0")


def reliability_sampled(pair: Pair, picture: Path) -> None:
    """Of answers drawn at a temperature."""
    _draw(pair, picture, "0.7")


def _draw(pair: Pair, picture: Path, temperature: str) -> None:
    prompts = WORK / "reliability.jsonl"
    chosen = chosen_prompts("mt-bench", (), QUESTIONS)
    lines = [json.dumps({"category": prompt.category, "turns": prompt.turns}) + "\n" for prompt in chosen]
    write_text(prompts, "".join(lines))
    given = ["--target", str(pair.target), "--drafter", str(pair.drafter), "--prompts", str(prompts), *TREES]
    given += ["--new-tokens", "192", "--temperature", temperature, "--seed", "0", "--reliability", str(picture)]
    redrafter("evaluate", *given)
