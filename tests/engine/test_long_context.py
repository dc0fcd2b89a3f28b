# SPDX-License-Identifier: Apache-2.0
"""Rope scaling: nodes at positions beyond the original context are rotated as plain vLLM rotates that text."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, runner
from tests.engine.scripted import assert_identical
from tests.models import save_random_drafter, save_random_llama

ORIGINAL = 64
EXTENDED = 8 * ORIGINAL

# The length of the context before scaling (max_position_embeddings in the config), the parameters, and
# vLLM's class. "dynamic" has a rotary table of max_position_embeddings in vLLM, so that must be the extended width.
KINDS: dict[str, tuple[int, dict[str, Any], str]] = {
    "linear": (ORIGINAL, {}, "LinearScalingRotaryEmbedding"),
    "dynamic": (EXTENDED, {"max_trained_positions": ORIGINAL}, "DynamicNTKScalingRotaryEmbedding"),
    "yarn": (EXTENDED, {"original_max_position_embeddings": ORIGINAL}, "YaRNScalingRotaryEmbedding"),
    "llama3": (
        EXTENDED,
        {"original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "Llama3RotaryEmbedding",
    ),
    "longrope": (
        EXTENDED,
        {
            "original_max_position_embeddings": ORIGINAL,
            "short_factor": [1.0] * 16,
            "long_factor": [1.0 + 0.3 * index for index in range(16)],
        },
        "Phi3LongRoPEScaledRotaryEmbedding",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_positions_beyond_the_original_context(make_engine: MakeEngine, tmp_path: Path, kind: str) -> None:
    width, options, rotary = KINDS[kind]
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": EXTENDED / ORIGINAL, **options}
    target = save_random_llama(tmp_path / "target", max_position_embeddings=width, rope_parameters=rope)
    save_random_drafter(target / "redrafter")
    tree = make_engine(target, TREE)
    assert rotary in {type(module).__name__ for module in runner(tree).model.modules()}
    # Prompts of 1 to 108 tokens: some start beyond the original 64, the others grow past them.
    assert_identical(make_engine(target), tree, max_tokens=80)
