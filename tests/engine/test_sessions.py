# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions answer as plain vLLM's do: every part, and whoever runs beside them."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from vllm.exceptions import VLLMValidationError

from redrafter_vllm.integration.patches import register_tree_attention
from tests.engine.conftest import MakeEngine
from tests.engine.differential.leaks import cached_blocks, leaks, watched_rows
from tests.engine.differential.stream import Stream, counted_preemptions, settle
from tests.engine.generation import CHAIN, TREE, core, cpu_only, generate, params, random_prompts, scheduler, tokens
from tests.engine.row_invariant import row_invariant
from tests.engine.scripted import scripted_trees
from tests.engine.sessions import Part, Session, Sessions, as_prompts, run_sessions, truths
from tests.models import VOCAB

pytestmark = pytest.mark.engine

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tree": (TREE, {}),
    "tree-async": (TREE, {"async_scheduling": True}),
    "chain": (CHAIN, {}),
    "chain-async": (CHAIN, {"async_scheduling": True}),
}


def random_sessions(seed: int, count: int = 5, parts: int = 4, longest: int = 19, **options: Any) -> Sessions:
    """Parts of one token and of many, answers of one token and of many, greedy and seeded in turns."""
    rng = random.Random(seed)

    def part(index: int) -> Part:
        defaults = {
            "temperature": 0.8 * (index % 2),
            "seed": index,
            "max_tokens": rng.choice([1, 2, 3, 7, longest]),
            "ignore_eos": True,
        }
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice([1, 1, 2, 17, 40]))]
        return Part(prompt, params(**{**defaults, **options}))

    return {f"session {i}": [part(i + turn) for turn in range(parts)] for i in range(count)}


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


def test_a_session_forgets_the_last_token_of_each_answer(make_engine: MakeEngine, random_target: Path) -> None:
    """What plain vLLM's session means: each part is answered like the prompt of all kept text and the part."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    sessions = random_sessions(7, temperature=0.0)
    for llm in (plain, tree):
        answers = run_sessions(llm, sessions)
        for name, parts in sessions.items():
            prompts = as_prompts(parts, answers[name])
            asked = [part.sampling for part in parts]
            assert [out[0] for out in tokens(generate(plain, prompts, asked))] == answers[name]


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
    ids=["penalties", "stop tokens", "end of text", "least length", "chains of two", "undrafted"],
)
def test_sampling_parameters(make_engine: MakeEngine, random_target: Path, options: dict[str, Any]) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    sessions = random_sessions(11, **options)
    expected = run_sessions(plain, sessions)
    with scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions) == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_beside_requests_in_pieces(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Without prefix caching, prompts in chunks: sessions in a batch with requests that do not know of them."""
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

    asked = {tuple(p): [*p, *o.outputs[0].token_ids] for p, o in zip(prompts, ordinary, strict=True)}
    with scripted_trees(tree, truths(sessions, expected) | asked), patch.object(tree.llm_engine, "step", watched_step):
        assert run_sessions(tree, sessions, before_step=join) == expected
        settle(tree)
    assert [own[f"r{index}"] for index in range(len(prompts))] == [out[0] for out in tokens(ordinary)]
    assert not leaks(tree)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_aborts(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """A client leaves in any step, while its session waits for it or runs: the others never notice."""
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
    """The engine's step; a client that is not one of `run_sessions` gets what is its own."""
    step = llm.llm_engine.step

    def watched_step() -> list[Any]:
        outputs = step()
        for output in outputs:
            if output.request_id == client.name:
                client.take(output)
        return outputs

    return watched_step


def test_preempted_before_the_stop_arrives(make_engine: MakeEngine, random_target: Path) -> None:
    """Asynchronously, a session may lose its cache to others while the step that ends its answer is in flight.

    vLLM 0.32 then forgets the session's text, and takes it out of every queue.
    """
    register_tree_attention()
    plain = make_engine(random_target, attention_backend="CUSTOM")
    shape = {"num_gpu_blocks_override": 17, "block_size": 16, "max_model_len": 160}
    tree = make_engine(random_target, TREE, **shape, async_scheduling=True)
    stream = Stream({})
    with stopped_while_preempted(tree) as stopped, counted_preemptions(tree, stream):
        for seed in range(6):
            rng = random.Random(seed)
            parts = [
                Part([rng.randrange(3, VOCAB) for _ in range(20)], greedy(length))
                for length in (rng.randint(5, 30), rng.randint(3, 30), 5)
            ]
            prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(20, 50))] for _ in range(3)]
            expected, ordinary = run_sessions(plain, {"s": parts}), generate(plain, prompts, greedy(80))
            asked = {tuple(p): [*p, *o.outputs[0].token_ids] for p, o in zip(prompts, ordinary, strict=True)}

            def join(step: int, prompts: list[list[int]] = prompts) -> None:
                for index, prompt in enumerate(prompts if step == 0 else ()):
                    tree.llm_engine.add_request(f"long {index}", {"prompt_token_ids": prompt}, greedy(80))

            with scripted_trees(tree, truths({"s": parts}, expected) | asked, seed=seed):
                assert run_sessions(tree, {"s": parts}, before_step=join) == expected
                settle(tree)
            assert not leaks(tree)
    assert stream.preemptions > 0 and "s" in {name.rsplit("-", 1)[0] for name in stopped}


def greedy(max_tokens: int) -> Any:
    return params(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)


@contextmanager
def stopped_while_preempted(llm: Any) -> Iterator[list[str]]:
    """Yields the sessions whose answer ended when they had nothing computed."""
    handle, stopped = scheduler(llm)._handle_stopped_request, []

    def handle_stopped_request(request: Any) -> bool:
        if request.resumable and request.num_computed_tokens == 0:
            stopped.append(request.request_id)
        return handle(request)

    with patch.object(scheduler(llm), "_handle_stopped_request", handle_stopped_request):
        yield stopped


@cpu_only
@pytest.mark.parametrize("asynchronous", [False, True])
def test_cached_blocks(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """No block of the prefix cache holds a token that a session forgot, and none is missing."""
    register_tree_attention()
    plain = make_engine(random_target, attention_backend="CUSTOM", block_size=16)
    tree = make_engine(random_target, TREE, block_size=16, async_scheduling=asynchronous)
    sessions = random_sessions(9, longest=33)
    for llm in (plain, tree):
        assert llm.llm_engine.reset_prefix_cache()
    with row_invariant(plain):
        expected = run_sessions(plain, sessions)
    with row_invariant(tree), scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions) == expected
    wanted, own = cached_blocks(plain), cached_blocks(tree)
    assert own.keys() == wanted.keys() and len(own) > 20
    for key, contents in own.items():
        assert all((content == wanted[key][0]).all() for content in contents)


@cpu_only
@pytest.mark.parametrize("asynchronous", [False, True])
def test_kv_events(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Whoever follows the cache by its events is told of the blocks that plain vLLM stores: not one fewer."""
    register_tree_attention()
    plain = make_engine(random_target, attention_backend="CUSTOM", block_size=16)
    tree = make_engine(random_target, TREE, block_size=16, async_scheduling=asynchronous)
    sessions, prompts = random_sessions(13, longest=33), random_prompts(4, VOCAB, longest=60, seed=13)
    with row_invariant(plain), stored_blocks(plain) as wanted:
        expected, ordinary = run_sessions(plain, sessions), generate(plain, prompts, greedy(40))
    asked = {tuple(p): [*p, *o.outputs[0].token_ids] for p, o in zip(prompts, ordinary, strict=True)}
    with row_invariant(tree), stored_blocks(tree) as own, scripted_trees(tree, truths(sessions, expected) | asked):
        assert run_sessions(tree, sessions) == expected
        assert tokens(generate(tree, prompts, greedy(40))) == tokens(ordinary)
    assert own == wanted and len(own) > 20


@contextmanager
def stored_blocks(llm: Any) -> Iterator[dict[Any, tuple[Any, ...]]]:
    """Yields what the `BlockStored` events of an engine with an empty cache said: hash, and parent and tokens."""
    from vllm.distributed.kv_events import BlockStored

    assert llm.llm_engine.reset_prefix_cache()
    pool, publisher = scheduler(llm).kv_cache_manager.block_pool, scheduler(llm).kv_event_publisher
    stored: dict[Any, tuple[Any, ...]] = {}

    def publish(batch: Any) -> None:
        for event in batch.events:
            assert isinstance(event, BlockStored)  # nothing is evicted here
            parent = event.parent_block_hash
            for index, block in enumerate(event.block_hashes):
                text = event.token_ids[index * event.block_size : (index + 1) * event.block_size]
                stored[block], parent = (parent, *text), block

    with patch.object(pool, "enable_kv_cache_events", True), patch.object(publisher, "publish", publish):
        yield stored


@pytest.mark.parametrize("asynchronous", [False, True])
def test_pause_and_resume(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """With drafts waiting to be verified; where no session rests, the cache is cleared as well."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, async_scheduling=asynchronous)
    sessions = random_sessions(15, count=3)
    expected, cleared = run_sessions(plain, sessions), []

    def pause(step: int) -> None:
        if step % 5 == 2:
            core(tree).pause_scheduler("keep", clear_cache=False)
        elif step % 5 == 4:  # by now what was in flight has arrived
            cleared.append(not scheduler(tree).kv_holding_waiting)
            if cleared[-1]:
                core(tree).reset_prefix_cache(reset_running_requests=True)
            core(tree).resume_scheduler()

    with scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions, before_step=pause) == expected
    core(tree).resume_scheduler()
    settle(tree)
    assert not leaks(tree) and True in cleared


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_text_without_room(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Parts that were sent before it was known how long the answers are: cut, and answered with a token.

    Plain vLLM writes such a text over that of another request.
    """
    options = {"max_model_len": 64, "max_num_seqs": 2, "async_scheduling": asynchronous}
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, **options)
    fits = {"fits": [Part([5, 6, 7], greedy(20)), Part([8], greedy(30))]}
    parts = [Part([9] * 30, greedy(20)), Part([10] * 30, greedy(20)), Part([11] * 3, greedy(20))]
    answers = run_sessions(tree, {"long": parts, **fits}, ahead=True)
    assert answers["fits"] == run_sessions(plain, fits)["fits"]
    assert [len(answer) for answer in answers["long"]] == [20, 1, 1]
    first = tokens(generate(plain, [parts[0].prompt], greedy(20)))[0][0]
    assert answers["long"][0] == first
    text = [*parts[0].prompt, *first[:-1], *parts[1].prompt][:63]
    assert answers["long"][1] == answers["long"][2] == tokens(generate(plain, [text], greedy(1)))[0][0]
    settle(tree)
    assert not leaks(tree)


def test_the_public_interface(make_engine: MakeEngine, asset: Path) -> None:
    """`AsyncLLM`, its engine in a process of its own, a trained drafter: sessions side by side, pauses, one too long.

    The client of that one gets an error, and nobody else notices.
    """
    plain = make_engine(asset)
    starts = [[40, 300, 77, 12, 90], [5, 6, 800, 13], [401, 22, 9]]
    sessions = {
        f"session {i}": [Part(start, greedy(6 + i)), Part([5], greedy(9 + i)), Part([7], greedy(20))]
        for i, start in enumerate(starts)
    }
    expected = run_sessions(plain, sessions)
    overlong = [Part([8] * 100, greedy(25)), Part([9] * 4, greedy(5))]
    answers, error = asyncio.run(converse(asset, sessions, overlong))
    assert answers == expected
    assert "the text of this session has 128 tokens" in error and "max_model_len=128" in error


async def converse(model: Path, sessions: Sessions, overlong: list[Part]) -> tuple[dict[str, list[list[int]]], str]:
    """The answers to sessions that run side by side, and the error of one that is too long."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            str(model),
            speculative_config=TREE,
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=128,
            max_num_seqs=4,
            kv_cache_memory_bytes=1 << 26,
        )
    )
    try:
        with pytest.raises(VLLMValidationError) as refused:
            await talk(llm, "overlong", overlong)
        done = asyncio.gather(*(talk(llm, name, parts) for name, parts in sessions.items()))
        while not done.done():
            await llm.pause_generation(mode="keep", clear_cache=False)
            await llm.resume_generation()
            await asyncio.sleep(0.05)
        return dict(zip(sessions, await done, strict=True)), str(refused.value)
    finally:
        llm.shutdown()


async def talk(llm: Any, name: str, parts: Sequence[Part]) -> list[list[int]]:
    """One session: every part is sent when the one before is answered."""
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    answers, answered = [[] for _ in parts], asyncio.Event()

    def asked(part: Part) -> Any:
        sampling = part.sampling.clone()
        sampling.output_kind = RequestOutputKind.DELTA
        return sampling

    async def inputs() -> AsyncGenerator[Any]:
        for part in parts:
            answered.clear()
            yield StreamingInput(prompt={"prompt_token_ids": list(part.prompt)}, sampling_params=asked(part))
            await answered.wait()

    turn = 0
    async for output in llm.generate(inputs(), asked(parts[0]), name):
        answers[turn] += output.outputs[0].token_ids
        if len(answers[turn]) == parts[turn].sampling.max_tokens:
            turn += turn < len(parts) - 1
            answered.set()
    return answers
