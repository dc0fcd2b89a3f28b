# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions with preemption, caches, KV events, pauses and the front end."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine.cached_blocks import assert_same_blocks, empty_caches
from tests.engine.conftest import MakeEngine
from tests.engine.differential.leaks import leaks
from tests.engine.differential.stream import Stream, counted_preemptions, settle
from tests.engine.differential.target import save_byte_target
from tests.engine.generation import (
    TREE,
    allow_tree_attention,
    core,
    cpu_only,
    generate,
    params,
    random_prompts,
    scheduler,
    tokens,
)
from tests.engine.row_invariant import row_invariant
from tests.engine.scripted import scripted_trees, truths_of
from tests.engine.sessions import Part, Sessions, random_sessions, run_sessions, truths
from tests.models import VOCAB


def greedy(max_tokens: int) -> Any:
    return params(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)


def test_preempted_before_the_stop_arrives(make_engine: MakeEngine, random_target: Path) -> None:
    """With asynchronous scheduling a session may be preempted while the step that ends its answer is in flight.

    vLLM 0.32 then loses the session's text, and removes it from every queue.
    """
    allow_tree_attention()
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

            def join(step: int, prompts: list[list[int]] = prompts) -> None:
                for index, prompt in enumerate(prompts if step == 0 else ()):
                    tree.llm_engine.add_request(f"long {index}", {"prompt_token_ids": prompt}, greedy(80))

            with scripted_trees(tree, truths({"s": parts}, expected) | truths_of(prompts, ordinary), seed=seed):
                assert run_sessions(tree, {"s": parts}, ahead=seed % 2 == 1, before_step=join) == expected
                settle(tree)
            assert not leaks(tree)
    assert stream.preemptions > 0 and "s" in {name.rsplit("-", 1)[0] for name in stopped}


@contextmanager
def stopped_while_preempted(llm: Any) -> Iterator[list[str]]:
    """Yields a list of the sessions whose answer ended when they had no computed tokens."""
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
    """No block of the prefix cache has a token that a session has dropped, and no block is missing."""
    plain, tree = empty_caches(make_engine, random_target, asynchronous=asynchronous)
    sessions = random_sessions(9, longest=33)
    with row_invariant(plain):
        expected = run_sessions(plain, sessions)
    with row_invariant(tree), scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions) == expected
    assert_same_blocks(tree, plain)


@cpu_only
@pytest.mark.parametrize("asynchronous", [False, True])
def test_kv_events(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """The KV events report exactly the blocks that plain vLLM stores."""
    plain, tree = empty_caches(make_engine, random_target, asynchronous=asynchronous)
    sessions, prompts = random_sessions(13, longest=33), random_prompts(4, VOCAB, longest=60, seed=13)
    with row_invariant(plain), stored_blocks(plain) as wanted:
        expected, ordinary = run_sessions(plain, sessions), generate(plain, prompts, greedy(40))
    all_truths = truths(sessions, expected) | truths_of(prompts, ordinary)
    with row_invariant(tree), stored_blocks(tree) as own, scripted_trees(tree, all_truths):
        assert run_sessions(tree, sessions) == expected
        assert tokens(generate(tree, prompts, greedy(40))) == tokens(ordinary)
    assert own == wanted and len(own) > 20


@contextmanager
def stored_blocks(llm: Any) -> Iterator[dict[Any, tuple[Any, ...]]]:
    """Yields the blocks of the `BlockStored` events of an engine with an empty cache: parent and tokens by hash."""
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
    """With drafts that are not verified yet; when no session is idle, the cache is cleared as well."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, async_scheduling=asynchronous)
    sessions = random_sessions(15, count=3)
    expected, cleared = run_sessions(plain, sessions), []

    def pause(step: int) -> None:
        if step % 5 == 2:
            core(tree).pause_scheduler("keep", clear_cache=False)
        elif step % 5 == 4:  # by now the step in flight has ended
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
def test_parts_beyond_max_model_len_are_cut(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Parts sent before the length of the answers is known: they are cut, and answered with one token.

    Plain vLLM writes such a text over another request's text.
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


@cpu_only
def test_grammars(make_engine: MakeEngine, tmp_path: Path) -> None:
    """A session keeps the grammar of its first part, even if later parts have none; it gets chains."""
    from vllm.sampling_params import StructuredOutputsParams

    target = save_byte_target(tmp_path / "target")
    allow_tree_attention()
    options = {"skip_tokenizer_init": False, "attention_backend": "CUSTOM"}
    plain, tree = make_engine(target, **options), make_engine(target, TREE, skip_tokenizer_init=False)
    grammar = {"structured_outputs": StructuredOutputsParams(regex=r"[a-f]{3}(-[0-9]{2}){30}")}
    sampling = [params(temperature=0.9, seed=i, max_tokens=5 + i, **(grammar if i % 2 == 0 else {})) for i in range(4)]
    parts = [Part([40 + i] * (1 + i), own) for i, own in enumerate(sampling)]
    sessions = {"by a grammar": parts, "free": [part._replace(sampling=sampling[1]) for part in parts]}
    for llm in (plain, tree):
        core(llm).structured_output_manager._use_async_grammar_compilation = False
    with row_invariant(plain):
        expected = run_sessions(plain, sessions)
    with row_invariant(tree), scripted_trees(tree, truths(sessions, expected)):
        assert run_sessions(tree, sessions) == expected
    tokenizer = plain.get_tokenizer()
    assert re.fullmatch(r"[a-f]{3}[-0-9]+", tokenizer.decode([t for part in expected["by a grammar"] for t in part]))


def test_the_public_interface(make_engine: MakeEngine, asset: Path) -> None:
    """`AsyncLLM` with a separate engine process and a trained drafter: parallel sessions, and impossible ones.

    The clients of the impossible sessions get an error, without effect on the others.
    """
    plain = make_engine(asset)
    starts = [[40, 300, 77, 12, 90], [5, 6, 800, 13], [401, 22, 9]]
    sessions = {
        f"session {i}": [Part(start, greedy(6 + i)), Part([5], greedy(9 + i)), Part([7], greedy(20))]
        for i, start in enumerate(starts)
    }
    expected = run_sessions(plain, sessions)
    late = Part([5], params(temperature=0.0, max_tokens=3, logprobs=1))
    impossible = [[Part([8] * 100, greedy(25)), Part([9] * 4, greedy(5))], [Part([8], greedy(2)), late]]
    answers, errors = asyncio.run(converse(asset, sessions, impossible))
    assert answers == expected
    assert "the text of this session has 128 tokens" in errors[0] and "max_model_len=128" in errors[0]
    assert errors[1].startswith("A session has log-probabilities only if its first part asks for them")


async def converse(
    model: Path, sessions: Sessions, impossible: list[list[Part]]
) -> tuple[dict[str, list[list[int]]], list[str]]:
    """The answers to parallel sessions, and the errors of those that cannot continue."""
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
        errors = []
        for parts in impossible:
            with pytest.raises(VLLMValidationError) as refused:
                await talk(llm, "impossible", parts)
            errors.append(str(refused.value))
        done = asyncio.gather(*(talk(llm, name, parts) for name, parts in sessions.items()))
        while not done.done():
            await llm.pause_generation(mode="keep", clear_cache=False)
            await llm.resume_generation()
            await asyncio.sleep(0.05)
        return dict(zip(sessions, await done, strict=True)), errors
    finally:
        llm.shutdown()


async def talk(llm: Any, name: str, parts: Sequence[Part]) -> list[list[int]]:
    """One session: each part is sent when the previous one is answered."""
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    answers, answered = [[] for _ in parts], asyncio.Event()

    def sampling_of(part: Part) -> Any:
        sampling = part.sampling.clone()
        sampling.output_kind = RequestOutputKind.DELTA
        return sampling

    async def inputs() -> AsyncGenerator[Any]:
        for part in parts:
            answered.clear()
            yield StreamingInput(prompt={"prompt_token_ids": list(part.prompt)}, sampling_params=sampling_of(part))
            await answered.wait()

    turn = 0
    async for output in llm.generate(inputs(), sampling_of(parts[0]), name):
        answers[turn] += output.outputs[0].token_ids
        if len(answers[turn]) == parts[turn].sampling.max_tokens:
            turn += turn < len(parts) - 1
            answered.set()
    return answers


@pytest.mark.parametrize("options", [{"stop": ["x"]}, {"n": 2}, {"output_kind": "FINAL_ONLY"}])
def test_options_that_vllm_refuses_in_sessions(options: dict[str, Any]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    kind = RequestOutputKind[options.get("output_kind", "DELTA")]
    with pytest.raises(VLLMValidationError, match="Input streaming not currently supported"):
        AsyncLLM._validate_streaming_input_sampling_params(SamplingParams(**{**options, "output_kind": kind}))
