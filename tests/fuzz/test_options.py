# SPDX-License-Identifier: Apache-2.0
"""Drafting options in every spelling: a configuration within its ranges, or `OptionError`."""

from typing import Any

from hypothesis import example, given

from redrafter_vllm.config import (
    MAX_BEAM_LENGTH,
    MAX_BEAM_WIDTH,
    MAX_NODES,
    OptionError,
    known_options,
    parse_drafting_options,
)
from tests.fuzz.inputs import damaged, only

OURS = {"beam_width": 4, "beam_length": 4, "num_speculative_tokens": 16, "logits_top_k": 50}
TENSORRT = {"redrafter_num_beams": 5, "redrafter_draft_len_per_beam": 5, "redrafter_greedy_search": True}
APPLE = {"beam_width": 4, "beam_length_with_root": 5, "drafter_quantization": "int8", "project_embedding": True}


@given(damaged([OURS, TENSORRT, APPLE, OURS | {"redrafter_num_beams": None}], known_options()))
@example({"beam_width": 10**5000})
@example({"beam_width": "x" * 100_000})
@example({"x\n" * 10_000: 1})
def test_options(options: dict[str, Any]) -> None:
    with only(OptionError):
        drafting = parse_drafting_options(options)
        assert 1 <= drafting.beam_width <= MAX_BEAM_WIDTH
        assert 1 <= drafting.beam_length <= MAX_BEAM_LENGTH
        assert 1 <= drafting.num_speculative_tokens <= min(MAX_NODES, drafting.max_nodes)
        assert drafting.logits_top_k is None or drafting.logits_top_k >= drafting.beam_width
