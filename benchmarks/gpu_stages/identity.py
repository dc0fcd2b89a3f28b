# SPDX-License-Identifier: Apache-2.0
"""The tokens of plain vLLM: greedy and seeded, float32 and bfloat16.

On a GPU, plain vLLM and trees attend by different kernels, so logits differ in their last bits and near-ties may fall
differently. A greedy difference counts as a near-tie if plain vLLM gave its two tokens almost the same probability.
In bfloat16 rounding is coarse; what plain vLLM does to itself when it batches otherwise is the measure there.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.engines import SIZES, TREE, Difference, differences, make_engine
from benchmarks.speedup.engine import Turn

NEAR = 1e-3  # natural log


def run(device: str, scratch: Path) -> Outcome:
    figures = {dtype: compare(device, scratch, dtype) for dtype in ("float32", "bfloat16")}
    exact, coarse = figures["float32"], figures["bfloat16"]
    # A seeded choice may turn on a last bit, too; more than one in a hundred requests would be a fault.
    passed = (
        not exact["real"]
        and exact["seeded"] <= 0.01 * exact["requests"]
        and coarse["greedy"] <= max(2, 2 * coarse["plain_batch_1_to_8"])
    )
    parts = [
        f"{dtype}: of {found['requests']} requests differ greedy {found['greedy']} ({len(found['real'])} beyond "
        f"near-ties), seeded {found['seeded']}; plain vLLM from itself at another batch size "
        f"{found['plain_batch_1_to_8']}"
        for dtype, found in figures.items()
    ]
    return Outcome(passed, "; ".join(parts), figures)


def compare(device: str, scratch: Path, dtype: str) -> dict[str, Any]:
    """Numbers of requests that differ."""
    sizes = SIZES[device]
    greedy, seeded = Turn(sizes.prompts, sizes.prompts), Turn(sizes.prompts, sizes.prompts, temperature=0.8)
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                make_engine(f"{name}-{dtype}", speculative, sizes, scratch, dtype=dtype, enforce_eager=True)
            )
            for name, speculative in (("plain", None), ("tree", TREE))
        ]
        for engine in engines:
            engine.wait_until_ready()
        plain, tree = engines
        with_logprobs = plain.take(Turn(sizes.prompts, sizes.prompts, logprobs=8))
        ours = tree.take(greedy)
        alone = plain.take(Turn(sizes.prompts, batch=1))
        plain_seeded, ours_seeded = plain.take(seeded), tree.take(seeded)
    expected = with_logprobs["tokens"]
    found = differences(expected, ours["tokens"], with_logprobs["logprobs"])
    return {
        "requests": sizes.prompts,
        "greedy": len(found),
        "real": [asdict(difference) for difference in found if not _near(difference)],
        "seeded": len(differences(plain_seeded["tokens"], ours_seeded["tokens"], [[]] * sizes.prompts)),
        "plain_batch_1_to_8": len(differences(expected, alone["tokens"], with_logprobs["logprobs"])),
        "accepted": sum(ours["counters"]["accepted_at_least"]),
    }


def _near(difference: Difference) -> bool:
    return difference.gap is not None and difference.gap < NEAR
