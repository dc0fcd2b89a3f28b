# SPDX-License-Identifier: Apache-2.0
"""Verification and drafting from CUDA graphs: that they are captured, their tokens, and the time of a step."""

from contextlib import ExitStack
from typing import Any

from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.engines import SIZES, TREE, count_differences, make_engine, max_by_rounding
from benchmarks.serving.speedup.engine import Turn

# Without compilation, which takes long and changes the rounding.
FULL = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
CAPTURED = "Graph capturing finished"


def run(call: Call) -> Outcome:
    """Compare in bfloat16, the usual type of serving.

    FlashAttention may split a context differently in a graph. How often that may change a token is judged as in
    `identity`: by how many outputs of the engine without graphs change with the batch size.
    """
    sizes = SIZES[call.device]
    options: dict[str, dict[str, Any]] = {
        "eager": {"enforce_eager": True},
        "graphs": {"compilation_config": FULL} if call.device == "cuda" else {"enforce_eager": True},
    }
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(make_engine(name, TREE, sizes, call.scratch, dtype="bfloat16", **chosen))
            for name, chosen in options.items()
        }
        for engine in engines.values():
            engine.wait_until_ready()
        turns = {name: engine.take(Turn(sizes.prompts, batch=1)) for name, engine in engines.items()}
        batched = {name: engine.take(Turn(sizes.prompts, sizes.prompts)) for name, engine in engines.items()}
    captured = CAPTURED in (call.scratch / "graphs.log").read_text(errors="replace")
    differing = [count_differences(pair["eager"]["tokens"], pair["graphs"]["tokens"]) for pair in (turns, batched)]
    itself = count_differences(turns["eager"]["tokens"], batched["eager"]["tokens"])
    step = {name: 1e3 * turn["seconds"] / sum(map(len, turn["steps"])) for name, turn in turns.items()}
    summary = (
        f"{'captured' if captured else 'NOT captured'}; of {sizes.prompts} requests differ {differing[0]} at batch 1, "
        f"{differing[1]} at 8, and {itself} without graphs from themselves at the other batch; "
        f"{step['eager']:.2f} ms a step without graphs, {step['graphs']:.2f} with"
    )
    passed = (captured or call.device != "cuda") and max(differing) <= max_by_rounding(itself)
    figures = {"captured": captured, "differing": differing, "itself": itself, "milliseconds_per_step": step}
    return Outcome(passed, summary, figures)
