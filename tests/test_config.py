# SPDX-License-Identifier: Apache-2.0
"""Drafting options: defaults, other projects' names, and all refusals."""

import pytest

from redrafter_vllm.config import DraftingConfig, OptionError, parse_drafting_options


def test_defaults_fit_each_other() -> None:
    config = parse_drafting_options({})
    assert (config.beam_width, config.beam_length, config.num_speculative_tokens) == (4, 4, 16)
    assert not config.is_chain


@pytest.mark.parametrize(
    ("width", "length", "slots"), [(1, 3, 3), (2, 4, 8), (5, 5, 16), (8, 4, 16), (1, 20, 20), (2, 20, 20)]
)
def test_default_number_of_slots(width: int, length: int, slots: int) -> None:
    assert DraftingConfig(width, length).num_speculative_tokens == slots


@pytest.mark.parametrize(("limit", "given"), [(1, 1), (3, 3), (8, 8), (9, 8), (128, 8)])
def test_slots_that_no_beam_could_fill_are_cut(limit: int, given: int) -> None:
    assert DraftingConfig(2, 4, limit).num_speculative_tokens == given


def test_names_of_other_projects() -> None:
    tensorrt = {"redrafter_num_beams": 5, "redrafter_draft_len_per_beam": 5, "redrafter_greedy_search": True}
    assert parse_drafting_options(tensorrt) == DraftingConfig(5, 5)
    assert parse_drafting_options({"beam_width": 4, "beam_length_with_root": 5}) == DraftingConfig(4, 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beam_wdith": 4}, "Unknown ReDrafter option 'beam_wdith'"),
        ({"beam_width": 0}, "beam_width=0 is out of range; it must be between 1 and 64"),
        ({"beam_width": 65}, "beam_width=65"),
        ({"beam_length": 33}, "beam_length=33"),
        ({"beam_width": "4"}, "beam_width must be an integer, not '4'"),
        ({"beam_width": True}, "beam_width must be an integer"),
        ({"num_speculative_tokens": 129, "beam_width": 16, "beam_length": 16}, "num_speculative_tokens=129"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens=-1"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens=0"),
        ({"logits_top_k": 3}, "logits_top_k=3"),
        (
            {"drafter_quantization": "int4"},
            "drafter_quantization='int4' is unknown; it must be null, 'none', 'fp8' or 'int8'",
        ),
        ({"project_embedding": "yes"}, "project_embedding must be true or false, not 'yes'"),
        ({"beam_length": 4, "beam_length_with_root": 5}, "both set beam_length"),
        ({"beam_width": 4, "redrafter_num_beams": 4}, "both set beam_width"),
        ({"beam_length_with_root": 1}, "beam_length_with_root=1"),
    ],
)
def test_refusals(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence.replace("'", ".")):
        parse_drafting_options(options)


def test_lengths_of_recorded_rounds() -> None:
    assert DraftingConfig(4, 4).round_lengths == (0, 1, 2, 3, 4)
    assert DraftingConfig(4, 5, prompt_lookup=False).round_lengths == (1, 2, 3, 4, 5)
    assert DraftingConfig(1, 3).round_lengths == (1, 2, 3)
    assert DraftingConfig(1, 1).round_lengths == (1,)
    assert DraftingConfig(4, 16).round_lengths == (0, 1, 2, 3, 4, 8, 16)
