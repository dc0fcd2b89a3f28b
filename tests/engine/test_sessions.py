# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions get the answers of plain vLLM to every part, and so do requests beside them."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.differential.leaks import leaks, watched_rows
from tests.engine.differential.stream import settle
from tests.engine.generation import CHAIN, TREE, generate, params, random_prompts, tokens
from tests.engine.scripted import scripted_trees, truths_of
from tests.engine.sessions import Session, as_prompts, random_sessions, run_sessions, truths
from tests.models import VOCAB

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tree": (TREE, {}),
    "tree-async": (TREE, {"async_scheduling": True}),
    "chain": (CHAIN, {}),
    "chain-async": (CHAIN, {"async_scheduling": True}),
}


@pytest.mark.parametrize("ahead", [False, True], ids=["in turns", "ahead"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_plain(make_engine: MakeEngine, random_target: Path, variant: str, ahead: bool) -> None:
    spec, options = VARIANTS[variant]
    plain, other = make_engine(random_target), make_engine(random_target, spec, **options)
    for seed in range(3):
        sessions = random_sessions(seed)
        expected = run_sessions(plain, sessions)
        with scripted_trees(other, truths(sessions, expected), seed=seed) as drawn, watched_rows(other) as strangers:
            assert run_sessions(other, sessions, ahead=ahead) == expected
        assert drawn and not strangers
        settle(other)
        assert not leaks(other)


def test_a_session_drops_the_last_token_of_each_answer(make_engine: MakeEngine, random_target: Path) -> None:
    """The meaning of a session in plain vLLM: each part is answered like one prompt of the kept text and the part."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    sessions = random_sessions(7, temperature=0.0)
    for llm in (plain, tree):
        answers = run_sessions(llm, sessions)
        for name, parts in sessions.items():
            prompts = as_prompts(parts, answers[name])
            sampling = [part.sampling for part in parts]
            assert [out[0] for out in tokens(generate(plain, prompts, sampling))] == answers[name]


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 0.9, "repetition_penalty": 1.2},
        {"stop_token_ids": list(range(0, VOCAB, 4))},
        {"ignore_eos": False, "logit_bias": {2: 4.0}},
        {"min_tokens": 5, "stop_token_ids": list(range(0, VOCAB, 3)), "max_tokens": 12},
        {"extra_args": {"redrafter": {"beam_width": 1, "num_speculative_tokens": 2}}},
        {"extra_args": {"redrafter": {"enabled": False}}},
    ],
    ids=["penalties", "stop tokens", "end of text", "min tokens", "chains of two", "undrafted"],
)
def test_sampling_parameters(make_engine: MakeEngine, random_target: Path, options: dict[str, Any]) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    sessions = random_sessions(11, **options)
    expected = run_sessions(plain, sessions)
    with scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions) == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_beside_requests_with_chunked_prompts(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Without prefix caching, with chunked prompts: sessions in a batch with ordinary requests."""
    plain = make_engine(random_target)
    options = {"max_num_batched_tokens": 60, "long_prefill_token_threshold": 20, "enable_prefix_caching": False}
    tree = make_engine(random_target, TREE, **options, async_scheduling=asynchronous)
    sessions, prompts = random_sessions(3), random_prompts(6, VOCAB, longest=60)
    sampling = params(temperature=0.7, seed=5, ignore_eos=True, max_tokens=40)
    expected, ordinary = run_sessions(plain, sessions), generate(plain, prompts, sampling)
    own: dict[str, list[int]] = {}

    def join(step: int) -> None:
        if step % 3 == 0 and step // 3 < len(prompts):
            tree.llm_engine.add_request(f"r{step // 3}", {"prompt_token_ids": prompts[step // 3]}, sampling)

    step = tree.llm_engine.step

    def watched_step() -> list[Any]:
        outputs = step()
        own.update({o.request_id: list(o.outputs[0].token_ids) for o in outputs if o.request_id.startswith("r")})
        return outputs

    all_truths = truths(sessions, expected) | truths_of(prompts, ordinary)
    with scripted_trees(tree, all_truths), patch.object(tree.llm_engine, "step", watched_step):
        assert run_sessions(tree, sessions, before_step=join) == expected
        settle(tree)
    assert [own[f"r{index}"] for index in range(len(prompts))] == [out[0] for out in tokens(ordinary)]
    assert not leaks(tree)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_aborts(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """A client leaves in any step, while its session waits or runs, without effect on the others."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, async_scheduling=asynchronous)
    sessions = random_sessions(5, count=3)
    expected = run_sessions(plain, sessions)
    leaving = random_sessions(6, count=1, temperature=0.0)
    with scripted_trees(tree, truths(sessions, expected) | truths(leaving, run_sessions(plain, leaving))):
        for last in range(0, 12, 2):
            client = Session(tree, "leaving", leaving["session 0"], ahead=last % 4 == 0)

            def leave(step: int, client: Session = client, last: int = last) -> None:
                if step < last:
                    client.go_on()
                elif step == last:
                    tree.llm_engine.abort_request(["leaving"])

            with patch.object(tree.llm_engine, "step", delivering(tree, client)):
                assert run_sessions(tree, sessions, before_step=leave) == expected
            settle(tree)
            assert not leaks(tree)


def delivering(llm: Any, client: Session) -> Any:
    """The engine's step, which also passes outputs to a client that is not one of `run_sessions`."""
    step = llm.llm_engine.step

    def watched_step() -> list[Any]:
        outputs = step()
        for output in outputs:
            if output.request_id == client.name:
                client.take(output)
        return outputs

    return watched_step
