# SPDX-License-Identifier: Apache-2.0
"""Comparison with the tokens of plain vLLM: greedy and seeded, float32 and bfloat16.

On a GPU plain vLLM and trees use different attention kernels, so the last bits of logits differ and near-ties may be
decided differently. A greedy difference in float32 is a near-tie if plain vLLM gave the two tokens almost the same
probability. Ties of seeded sampling also depend on its noise, which no log-probability shows, so only their number is
checked. bfloat16 rounds coarsely: there the limit is the number of outputs of plain vLLM that change with the batch
size.
"""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.engines import (
    SIZES,
    TREE,
    Difference,
    count_differences,
    differences,
    make_engine,
    max_by_rounding,
)
from benchmarks.serving.speedup.engine import Turn
from redrafter_vllm.bench.engine import EngineProcess

NEAR = 1e-4  # natural log; rounding in float32 changes the logits of this target by 2e-5
# Of 64 requests: fewer than one near-tie is expected in 6,000 tokens, and an error changes most requests.
MAX_TIES = 2
DTYPES = ("float32", "bfloat16")


def run(call: Call) -> Outcome:
    sizes, figures = SIZES[call.device], dict[str, Any]()
    with ExitStack() as stack:
        engines = {
            dtype: [
                stack.enter_context(
                    make_engine(f"{name}-{dtype}", speculative, sizes, call.scratch, dtype=dtype, enforce_eager=True)
                )
                for name, speculative in (("plain", None), ("tree", TREE))
            ]
            for dtype in DTYPES
        }
        for dtype, (plain, tree) in engines.items():
            figures[dtype] = compare(plain, tree, sizes.prompts)
            call.keep(figures)
    return judge(figures)


def judge(figures: dict[str, Any]) -> Outcome:
    exact, coarse = figures["float32"], figures["bfloat16"]
    passed = (
        not exact["real"]
        and exact["greedy"] <= MAX_TIES
        and exact["seeded"] <= MAX_TIES
        and coarse["greedy"] <= max_by_rounding(coarse["plain_batch_1_to_8"])
    )
    parts = [
        f"{dtype}: of {found['requests']} requests differ greedy {found['greedy']} ({len(found['real'])} beyond "
        f"near-ties), seeded {found['seeded']}; plain vLLM from itself at another batch size "
        f"{found['plain_batch_1_to_8']}"
        for dtype, found in figures.items()
    ]
    return Outcome(passed, "; ".join(parts), figures)


def compare(plain: EngineProcess, tree: EngineProcess, prompts: int) -> dict[str, Any]:
    """Numbers of requests whose tokens differ."""
    for engine in (plain, tree):
        engine.wait_until_ready()
    greedy, seeded = Turn(prompts, prompts), Turn(prompts, prompts, temperature=0.8)
    with_logprobs, ours = plain.take(Turn(prompts, prompts, logprobs=8)), tree.take(greedy)
    alone = plain.take(Turn(prompts, batch=1))
    plain_seeded, ours_seeded = plain.take(seeded), tree.take(seeded)
    expected = with_logprobs["tokens"]
    found = differences(expected, ours["tokens"], with_logprobs["logprobs"])
    return {
        "requests": prompts,
        "greedy": len(found),
        "real": [asdict(difference) for difference in found if not _near(difference)],
        "seeded": count_differences(plain_seeded["tokens"], ours_seeded["tokens"]),
        "plain_batch_1_to_8": count_differences(expected, alone["tokens"]),
        "accepted": sum(ours["counters"]["accepted_at_least"]),
    }


def _near(difference: Difference) -> bool:
    return difference.gap is not None and abs(difference.gap) < NEAR
