# SPDX-License-Identifier: Apache-2.0
"""`--speculative-config` as a whole, as vLLM hands it over: a configuration that fits the target, or one sentence."""

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import example, given

from redrafter_vllm.checkpoint import locate as resolve
from redrafter_vllm.config import MAX_NODES, known_options
from tests.fuzz.inputs import damaged, only
from tests.paths import ASSET

SCHEDULE = "num_speculative_tokens_per_batch_size"
WORD = {"method": "redrafter", "beam_width": 4, "beam_length": 4}
PLACE = {"method": "redrafter", "model": str(ASSET / "redrafter"), SCHEDULE: [[1, 4, 16], [5, 16, 7], [17, 1024, 0]]}
MODEL = {"model": "redrafter", "num_speculative_tokens": 8, "logits_top_k": 50}
DASHES = {"method": "redrafter", "beam-width": 4, "redrafter_draft_len_per_beam": 3}
KEYS = ("method", "model", SCHEDULE, *known_options())


@cache
def engine() -> dict[str, Any]:
    from vllm.config import ModelConfig, ParallelConfig

    target = ModelConfig(model=str(ASSET), dtype="float32", max_model_len=1024)
    return {"target_model_config": target, "target_parallel_config": ParallelConfig()}


@given(damaged([WORD, PLACE, MODEL, DASHES], KEYS))
@example(PLACE | {"model": "x" * 5000})
@example(PLACE | {"model": 3})
@example(PLACE | {SCHEDULE: "x"})
@example(PLACE | {"beam-width": 2, "beam_width": 3})
def test_speculative_config(options: dict[str, Any]) -> None:
    from redrafter_vllm.integration.frontend.build_config import build_speculative_config

    options |= engine()
    absent = resolve.DrafterNotFoundError("The hub has no such drafter.")
    with patch.object(resolve, "_download", side_effect=absent), only(ValueError):
        config = build_speculative_config(options)
        assert Path(config.checkpoint).resolve() == (ASSET / "redrafter").resolve()
        assert 1 <= config.num_speculative_tokens <= min(MAX_NODES, config.drafting.max_nodes)
        for first, last, nodes in config.num_speculative_tokens_per_batch_size or ():
            assert 1 <= first <= last and 0 <= nodes <= config.num_speculative_tokens
