# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters about text, and those set per engine: the answers of plain vLLM, with a trained drafter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE
from tests.engine.test_text import FAST, TEXTS, assert_same_answers, text_params
from tests.engine.watch import Drafting, watched

TEXT = {"skip_tokenizer_init": False}


def both(make_engine: MakeEngine, asset: Path, **options: Any) -> tuple[Any, Any]:
    options = {**TEXT, **options}
    return make_engine(asset, **options), make_engine(asset, {**FAST, "model": str(asset / "redrafter")}, **options)


def answers(engines: tuple[Any, Any], texts: list[str], sampling: list[Any]) -> tuple[list[Any], list[Drafting]]:
    """ReDrafter's answers, after checking that they equal plain vLLM's."""
    plain, tree = engines
    expected = plain.generate(texts, sampling, use_tqdm=False)
    with watched() as watch:
        outputs = tree.generate(texts, sampling, use_tqdm=False)
    assert_same_answers(expected, outputs)
    return outputs, watch.in_order(outputs)


def test_bad_words_and_stops_as_text(make_engine: MakeEngine, asset: Path) -> None:
    """Bad words and stops as strings, the end of the text and its bounds, a leading bad word that bans one token."""
    engines = both(make_engine, asset)
    eos = engines[0].get_tokenizer().eos_token_id
    ends = {"logit_bias": {eos: 12.0}, "temperature": 0.9, "max_tokens": 40}
    kinds: list[dict[str, Any]] = [
        {"bad_words": ["self", "return", "if not"]},
        {"bad_words": ["self.", "\n        return"], "temperature": 0.8},
        {"stop": ["\n\n"]},
        {"stop": [":", "def"], "include_stop_str_in_output": True, "temperature": 0.8},
        ends,
        {**ends, "ignore_eos": True},
        {**ends, "min_tokens": 12},
        {},
    ]
    sampling = [text_params(seed=index, **kind) for index, kind in enumerate(kinds)]
    outputs, draftings = answers(engines, TEXTS * 2, sampling)
    assert all(drafting.accepted > 0 and drafting.branching > 0 for drafting in draftings[:4])
    answer = [output.outputs[0] for output in outputs]
    assert not any(word in answer[0].text for word in ("self", "return", "if not"))
    assert [answer[index].finish_reason for index in (2, 3)] == ["stop", "stop"]
    assert len(answer[4].token_ids) < 12 <= len(answer[6].token_ids) and len(answer[5].token_ids) == 40


def test_several_completions(make_engine: MakeEngine, asset: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"presence_penalty": 0.7}, {"top_p": 0.8}]
    sampling = [text_params(n=3, temperature=0.8, seed=index, **kind) for index, kind in enumerate(kinds)]
    outputs, draftings = answers(both(make_engine, asset), TEXTS[:3], sampling)
    assert all(len({completion.text for completion in output.outputs}) == 3 for output in outputs)
    assert all(drafting.accepted > 0 and drafting.branching > 0 for drafting in draftings)


def without_extras(sampling: list[Any]) -> list[Any]:
    """The same requests, without a processor's arguments and without a budget."""
    return [text_params(temperature=own.temperature, seed=own.seed, max_tokens=own.max_tokens) for own in sampling]


class NotTheOneBeforeLast(LogitsProcessor):
    """Bans the last token but one in requests that want it, read as vLLM documents: drafts are in `input_ids`."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.states = req_states
        self.wanted = [False] * req_states.max_num_reqs

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self.wanted[req_idx] = bool((sampling_params.extra_args or {}).get("vary"))
        return self.wanted[req_idx]

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        for row, slot in enumerate(ctx.expanded_idx_mapping.tolist()):
            if not self.wanted[slot]:
                continue
            if ctx.expanded_local_pos[row] > 0:
                before = int(ctx.input_ids[row - 1])
            else:
                before = int(self.states.all_token_ids.gpu[slot, self.states.total_len.gpu[slot] - 2])
            logits[row, before] = -torch.inf
        return logits


def test_custom_logits_processors(make_engine: MakeEngine, asset: Path) -> None:
    """Only the requests that a processor changes get chains; the others of the same batch keep their trees."""
    engines = both(make_engine, asset, logits_processors=[NotTheOneBeforeLast])
    kinds: list[dict[str, Any]] = [{"extra_args": {"vary": True}}, {}] * 2
    sampling = [text_params(temperature=0.8 * (index > 1), seed=index, **kind) for index, kind in enumerate(kinds)]
    free = engines[0].generate(TEXTS, without_extras(sampling), use_tqdm=False)
    outputs, draftings = answers(engines, TEXTS, sampling)
    for output, without, drafting, kind in zip(outputs, free, draftings, kinds, strict=True):
        own = list(output.outputs[0].token_ids)
        if kind:
            assert not any(a == b for a, b in zip(own, own[2:], strict=False))
        assert (output.outputs[0].text != without.outputs[0].text) == bool(kind)
        assert drafting.accepted > 0
        assert (drafting.branching == 0) == bool(kind)


def test_thinking_budgets(make_engine: MakeEngine, asset: Path) -> None:
    """Thought begins with `(` and must end with `):` within the budget; such requests get chains."""
    thinking = {"reasoning_start_str": "(", "reasoning_end_str": "):\n"}
    engines = both(make_engine, asset, reasoning_config=thinking)
    kinds: list[dict[str, Any]] = [{"thinking_token_budget": 4}, {}, {"thinking_token_budget": 7}]
    texts = ["def read(self, size, offset, ", "import os\n\n\nclass ", "print(name, value, "]
    common: dict[str, Any] = {"max_tokens": 14}
    sampling = [
        text_params(temperature=0.8 * (index > 1), seed=index, **common, **kind) for index, kind in enumerate(kinds)
    ]
    free = engines[0].generate(texts, without_extras(sampling), use_tqdm=False)
    outputs, draftings = answers(engines, texts, sampling)
    for output, without, drafting, kind in zip(outputs, free, draftings, kinds, strict=True):
        assert (output.outputs[0].text != without.outputs[0].text) == bool(kind)
        assert drafting.accepted > 0
        assert (drafting.branching == 0) == bool(kind)


@pytest.mark.parametrize("option", ["enable_trace_replay", "return_sampling_mask"])
def test_replay_is_refused_at_start(make_engine: MakeEngine, random_target: Path, option: str) -> None:
    with pytest.raises(Exception, match=option):
        make_engine(random_target, TREE, logprobs_mode="processed_logprobs", **{option: True})
