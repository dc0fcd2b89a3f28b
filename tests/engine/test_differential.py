# SPDX-License-Identifier: Apache-2.0
"""Hundreds of random requests and sessions against plain vLLM, in a cache too small for all.

Parameters, arrivals, aborts and the parts of sessions are random.

At random steps the drafter is replaced by another and the target gets its weights again.

Everything is determined by one seed. For a longer run:

    REDRAFTER_DIFFERENTIAL_REQUESTS=5000 REDRAFTER_DIFFERENTIAL_SEED=7 \\
        python -m pytest tests/engine/test_differential.py --timeout 0

Both engines compute row-invariantly (`row_invariant`), so no difference is caused by rounding: any token that differs
is a bug.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.budgets import random_budgets
from tests.engine.cached_blocks import cached_blocks
from tests.engine.conftest import MakeEngine
from tests.engine.differential.cases import MAX_MODEL_LEN, Case, random_cases
from tests.engine.differential.compare import difference
from tests.engine.differential.leaks import leaks, watched_rows
from tests.engine.differential.stream import Stream, run_stream
from tests.engine.differential.swaps import Swaps, own_trees_in_between
from tests.engine.differential.target import save_byte_target
from tests.engine.generation import CHAIN, TREE, allow_tree_attention, cpu_only, request_name, runner
from tests.engine.row_invariant import row_invariant
from tests.engine.scripted import trees_around
from tests.engine.sessions import run_sessions, truths

pytestmark = cpu_only

REQUESTS = int(os.environ.get("REDRAFTER_DIFFERENTIAL_REQUESTS", "500"))
SEED = int(os.environ.get("REDRAFTER_DIFFERENTIAL_SEED", "0"))

SHAPE = {"block_size": 16, "max_model_len": MAX_MODEL_LEN, "skip_tokenizer_init": False}
TINY = {
    **SHAPE,
    "num_gpu_blocks_override": 18,
    "max_num_batched_tokens": 96,
    "long_prefill_token_threshold": 40,
    "scheduling_policy": "priority",
}
FEWER_NODES = [(1, 2, 16), (3, 5, 6), (6, 8, 3)]
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "synchronous": (TREE, {}),
    "asynchronous": (
        {**TREE, "num_speculative_tokens_per_batch_size": FEWER_NODES, "project_embedding": True},
        {"async_scheduling": True},
    ),
    "adaptive": ({**TREE, "adaptive": True, "prompt_lookup": True}, {}),
    "chains": (CHAIN, {"async_scheduling": True, "attention_backend": "CUSTOM"}),
}


@pytest.fixture(scope="module")
def engines(make_engine: MakeEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plain vLLM on our attention, which can be made row-invariant, and an engine for each variant."""
    target = save_byte_target(tmp_path_factory.mktemp("bytes") / "target")
    allow_tree_attention()
    plain = make_engine(target, attention_backend="CUSTOM", max_num_seqs=32, **SHAPE)
    others = {name: make_engine(target, spec, **TINY, **own) for name, (spec, own) in VARIANTS.items()}
    return {"plain": plain, **others}


@pytest.fixture(scope="module")
def expected(engines: dict[str, Any]) -> dict[str, Any]:
    return answers_of_plain(engines["plain"], random_cases(REQUESTS, SEED))


def answers_of_plain(plain: Any, cases: list[Case]) -> dict[str, Any]:
    """Plain vLLM's answer to each request and session, by name, with a cache that is large enough for all."""
    single = [case for case in cases if not case.more]
    prompts = [{"prompt_token_ids": list(case.prompt)} for case in single]
    with row_invariant(plain):
        outputs = plain.generate(prompts, [case.sampling() for case in single], use_tqdm=False)
        answers = run_sessions(plain, {case.name: case.parts for case in cases if case.more})
    return {**dict(zip((case.name for case in single), outputs, strict=True)), **answers}


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_stream(engines: dict[str, Any], expected: dict[str, Any], variant: str, tmp_path: Path) -> None:
    cases = random_cases(REQUESTS, SEED)
    plain, tree = engines["plain"], engines[variant]
    blocks: dict[Any, list[torch.Tensor]] = {}

    with (
        row_invariant(tree) as renew,
        truthful_trees(tree, cases, expected),
        new_weights_in_between(tree, tmp_path, renew) as swaps,
        watched_rows(tree) as strangers,
        random_budgets(SEED) if variant == "adaptive" else nullcontext(),
    ):

        def after_step(step: int) -> None:
            if step % 20 == 0:
                blocks.update(cached_blocks(tree))
            swaps(step)

        stream = run_stream(tree, cases, after_step)
    differing = [
        f"seed {SEED}, {variant}, {case}: {what}"
        for case in cases
        if (what := difference(plain, case, expected[case.name], stream.answers[case.name]))
    ]
    assert not differing, f"{len(differing)} of {REQUESTS}:\n" + "\n".join(differing[:5])
    assert not strangers
    assert not leaks(tree)
    assert_as_cached_by(plain, blocks)
    assert_not_idle(stream)
    assert min(swaps.done[kind] for kind in ("drafter", "wrong", "target")) > stream.steps / 200


def test_another_target_in_the_same_engines(engines: dict[str, Any]) -> None:
    """Both engines get the weights of another target, then their own again; nothing of the other target is kept."""
    plain, tree = engines["plain"], engines["asynchronous"]
    cases = random_cases(24, SEED + 1)
    path = Path(runner(plain).model_config.model)
    weights = load_file(path / "model.safetensors")
    answers: list[list[Any]] = []
    for scale in (1.0, 1.3, 1.0):
        new = [(name, tensor * scale if "embed_tokens" in name else tensor) for name, tensor in weights.items()]
        for llm in (plain, tree):
            assert llm.reset_prefix_cache()
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(new)})
        expected = answers_of_plain(plain, cases)
        with row_invariant(tree):
            stream = run_stream(tree, cases)
        pairs = [(case, expected[case.name], stream.answers[case.name]) for case in cases]
        assert [what for case, *pair in pairs if (what := difference(plain, case, *pair))] == []
        assert not leaks(tree)
        answers.append([tokens_of(expected[case.name]) for case in cases])
    assert answers[0] == answers[2]
    assert sum(pair[0] != pair[1] for pair in zip(*answers[:2], strict=True)) > 5


def tokens_of(answer: Any) -> list[list[int]]:
    """The tokens of a request's choices, or of a session's parts."""
    return answer if isinstance(answer, list) else [list(one.token_ids) for one in answer.outputs]


@contextmanager
def new_weights_in_between(llm: Any, scratch: Path, renew: Callable[[], None]) -> Iterator[Swaps]:
    """Within scripted trees: weights change between steps, and the drafter draws some trees itself."""
    target = Path(runner(llm).model_config.model)
    swaps = Swaps(llm, target, scratch, renew, SEED)
    with own_trees_in_between(swaps):
        yield swaps
    llm.collective_rpc("reload_drafter", args=(str(target / "redrafter"),))


def truthful_trees(llm: Any, cases: list[Case], expected: dict[str, Any]) -> Any:
    """Trees around each request's true answer, found by the request's own name (`index_name` for one of several)."""
    states = runner(llm).req_states
    several = {case.name for case in cases if "n" in case.options}
    sessions = {case.name: truths({case.name: case.parts}, expected) for case in cases if case.more}

    def continuation(row: int, known: list[int]) -> list[int]:
        name, index = request_name(states, row), 0
        if name in sessions:
            return sessions[name][tuple(known[: states.prompt_len.np[row]])][len(known) :]
        if name not in expected:
            child, name = name.split("_", 1)
            index = int(child)
        truth = list(expected[name].outputs[index].token_ids)
        return truth[len(known) - states.prompt_len.np[row] :]

    assert several and sessions
    return trees_around(llm, continuation, seed=SEED)


def assert_as_cached_by(plain: Any, blocks: dict[Any, list[torch.Tensor]]) -> None:
    """Blocks that prefix caching could reuse are, bit for bit, those that plain decoding leaves."""
    theirs = cached_blocks(plain)
    common = theirs.keys() & blocks.keys()
    assert len(common) > 40
    for key in common:
        assert all(torch.equal(own, theirs[key][0]) for own in blocks[key]), f"block {key} differs"


def assert_not_idle(stream: Stream) -> None:
    """Check that the run contained the events that it is meant to test."""
    answers = [answer for answer in stream.answers.values() if answer.session is None]
    sessions = [answer for answer in stream.answers.values() if answer.session is not None]
    assert sum(len(answer.session.finish_reasons) for answer in sessions) > REQUESTS / 20
    assert any(answer.aborted for answer in sessions)
    assert stream.tokens_per_update > 1.3
    assert stream.preemptions > REQUESTS / 50
    assert sum(answer.num_cached > 0 for answer in answers) > REQUESTS / 10
    aborted = [answer for answer in answers if answer.aborted]
    assert len(aborted) > REQUESTS / 20
    assert any(answer.completions for answer in aborted) and any(not answer.completions for answer in aborted)
