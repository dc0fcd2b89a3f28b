# SPDX-License-Identifier: Apache-2.0
"""Counters contain only received tokens: none behind a limit, a stop, the end of the text or an abort."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from redrafter_vllm.integration.frontend.prometheus import ACCEPTED
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, params, scheduler
from tests.engine.test_metrics import assert_per_request, counters, received, watched

PROMPTS = [
    "import os\n\ndef ",
    "class Reader:\n    def read(self, size=-1):\n",
    "try:\n    from ",
    "    for key, value in ",
    '"""Parse ',
    "def main(argv):\n    parser = ",
]
# Eighteen blocks of sixteen tokens are too few for six long requests, so that some are preempted.
OPTIONS = {
    "skip_tokenizer_init": False,
    "max_model_len": 256,
    "disable_log_stats": False,
    "per_request_spec_decode_metrics": "detailed",
    "num_gpu_blocks_override": 18,
    "block_size": 16,
}


class Watch:
    """The counters and verifications within a block, compared with what the requests received."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def __enter__(self) -> "Watch":
        self.before = counters(self.llm)
        self.watching = watched()
        self.seen = self.watching.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.watching.__exit__(None, None, None)
        self.counted = counters(self.llm)
        self.counted.subtract(self.before)

    def check(self, outputs: list[Any], *, others: int | None = 0) -> int:
        """Compare every counter with what the requests received.

        `others` tokens came from steps without drafts other than each request's first; None skips that comparison.
        Returns the number of tokens that the walk emitted and no request received.
        """
        steps = [step.emitted for step in received(self.seen, outputs)]
        num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert others is None or sum(steps) == num_tokens - len(outputs) - others
        assert self.counted["vllm:redrafter_verifications"] == len(steps)
        assert self.counted["vllm:redrafter_tokens"] == sum(steps)
        assert self.counted["vllm:spec_decode_num_drafts"] == len(steps)
        assert self.counted["vllm:spec_decode_num_accepted_tokens"] == sum(steps) - len(steps)
        for depth in range(1, 5):
            deep = sum(tokens > depth for tokens in steps)
            assert self.counted[ACCEPTED, depth] == deep
            assert self.counted["vllm:spec_decode_num_accepted_tokens_per_pos", depth] == deep
        return sum(step.emitted for step in self.seen) - sum(steps)


def drafting(make_engine: MakeEngine, asset: Path, **options: Any) -> Any:
    return make_engine(asset, TREE, **OPTIONS, **options)


def run(llm: Any, sampling: Any, prompts: list[str] = PROMPTS) -> list[Any]:
    return llm.generate(prompts, sampling, use_tqdm=False)


def text_params(**options: Any) -> Any:
    return params(**{"temperature": 0.0, "ignore_eos": True, "detokenize": True, **options})


@pytest.fixture
def truth(make_engine: MakeEngine, asset: Path) -> list[Any]:
    """The full token sequence that each prompt leads to."""
    return run(make_engine(asset, skip_tokenizer_init=False), text_params(max_tokens=60))


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 20])
def test_limits(make_engine: MakeEngine, asset: Path, truth: list[Any], max_tokens: int) -> None:
    llm = drafting(make_engine, asset)
    with Watch(llm) as watch:
        outputs = [run(llm, text_params(max_tokens=max_tokens), [prompt])[0] for prompt in PROMPTS]
    assert [o.outputs[0].token_ids for o in outputs] == [t.outputs[0].token_ids[:max_tokens] for t in truth]
    surplus = watch.check(outputs)
    assert (surplus > 0) == (max_tokens > 1)
    assert watch.counted["vllm:generation_tokens"] == max_tokens * len(PROMPTS)
    assert_per_request(received(watch.seen, outputs), outputs)


@pytest.mark.parametrize("stop", ["token", "end of text", "longest text"])
def test_stops(make_engine: MakeEngine, asset: Path, truth: list[Any], stop: str) -> None:
    llm = drafting(make_engine, asset)
    prompts: list[Any] = PROMPTS
    if stop == "longest text":
        prompts = [{"prompt_token_ids": (list(range(5, 105)) * 3)[: 240 + index]} for index in range(6)]
    renderer, outputs = llm.llm_engine.input_processor.renderer, []
    with Watch(llm) as watch:
        for index, prompt in enumerate(prompts):
            token = truth[index].outputs[0].token_ids[7 + index]
            options = {"token": {"stop_token_ids": [token]}, "end of text": {"ignore_eos": False}}.get(stop, {})
            with patch.object(renderer, "get_eos_token_id", lambda token=token: token):
                outputs += run(llm, text_params(max_tokens=50, **options), [prompt])
    reason = "length" if stop == "longest text" else "stop"
    assert {output.outputs[0].finish_reason for output in outputs} == {reason}
    # Before the longest text ends, fewer drafts are scheduled, and none when only one more token fits.
    longest = stop == "longest text"
    assert (watch.check(outputs, others=None if longest else 0) > 0) == (not longest)
    assert watch.counted["vllm:generation_tokens"] == sum(len(o.outputs[0].token_ids) for o in outputs)
    assert_per_request(received(watch.seen, outputs), outputs)


def test_stop_strings(make_engine: MakeEngine, asset: Path, truth: list[Any]) -> None:
    """The front end finds them after the engine has counted; vLLM's `generation_tokens` counts before it as well."""
    llm, stops = drafting(make_engine, asset), []
    for index, own in enumerate(truth):
        text = own.outputs[0].text
        stops.append(text[10 + 3 * index : 13 + 3 * index])
    with Watch(llm) as watch:
        outputs = run(llm, [text_params(max_tokens=50, stop=[stop]) for stop in stops])
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    surplus = watch.check(outputs)
    assert surplus > 0
    delivered = sum(len(output.outputs[0].token_ids) for output in outputs) + surplus
    assert watch.counted["vllm:generation_tokens"] == delivered


def test_a_grammar(make_engine: MakeEngine, asset: Path) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    llm = drafting(make_engine, asset)
    grammar = StructuredOutputsParams(regex="(import [a-z]+\\n){3}[a-z]{40,90}")
    with Watch(llm) as watch:
        outputs = run(llm, text_params(max_tokens=33, structured_outputs=grammar, ignore_eos=False))
    # Drafts that the grammar refuses are never scheduled.
    watch.check(outputs, others=None)
    assert watch.counted["vllm:redrafter_tokens"] > watch.counted["vllm:redrafter_verifications"]


def test_preemption(make_engine: MakeEngine, asset: Path, truth: list[Any]) -> None:
    llm = drafting(make_engine, asset)
    scheduling, back = type(scheduler(llm)), []
    preempt = scheduling._preempt_request

    def note(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        back.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    with Watch(llm) as watch, patch.object(scheduling, "_preempt_request", note):
        outputs = run(llm, text_params(max_tokens=57))
    assert [o.outputs[0].token_ids for o in outputs] == [t.outputs[0].token_ids[:57] for t in truth]
    assert back
    # A resumed request computes its text again and emits one token without drafts.
    assert watch.check(outputs, others=len(back)) > 0


def test_aborted_requests(make_engine: MakeEngine, asset: Path) -> None:
    llm = drafting(make_engine, asset)
    engine = llm.llm_engine
    with Watch(llm) as watch:
        for index, prompt in enumerate(PROMPTS[:2]):
            engine.add_request(f"abort{index}", {"prompt": prompt}, text_params(max_tokens=50))
        latest: dict[str, Any] = {}
        for step in range(6):
            latest |= {output.request_id: output for output in engine.step()}
            if step == 3:
                engine.abort_request(["abort0"])
        engine.abort_request(["abort1"])
        engine.step()
    watch.check([latest["abort0"], latest["abort1"]])


def test_asynchronous_scheduling(make_engine: MakeEngine, asset: Path, truth: list[Any]) -> None:
    """Runs last, as its counters replace those of the earlier engine. A request is verified once more after its end."""
    llm = drafting(make_engine, asset, async_scheduling=True)
    stops = [own.outputs[0].token_ids[7 + index] for index, own in enumerate(truth)]
    sampling = [text_params(max_tokens=9 + index, stop_token_ids=[stop]) for index, stop in enumerate(stops)]
    with Watch(llm) as watch:
        outputs = run(llm, sampling)
    watch.check(outputs)
    assert watch.counted["vllm:generation_tokens"] == sum(len(o.outputs[0].token_ids) for o in outputs)
    assert_per_request(received(watch.seen, outputs), outputs)
