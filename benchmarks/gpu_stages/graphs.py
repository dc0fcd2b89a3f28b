# SPDX-License-Identifier: Apache-2.0
"""Verification and drafting from CUDA graphs: captured, the same tokens as without, and what a step costs with each."""

from contextlib import ExitStack
from pathlib import Path

from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.engines import SIZES, TREE, differences, make_engine
from benchmarks.speedup.engine import Turn

# No compilation: it takes long, and changes the rounding.
FULL = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
CAPTURED = "Graph capturing finished"


def run(device: str, scratch: Path) -> Outcome:
    """In bfloat16, as graphs are for serving; the same kernels run either way, so the same tokens must come."""
    sizes = SIZES[device]
    options = {
        "eager": {"enforce_eager": True},
        "graphs": {"compilation_config": FULL} if device == "cuda" else {"enforce_eager": True},
    }
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(make_engine(name, TREE, sizes, scratch, dtype="bfloat16", **chosen))
            for name, chosen in options.items()
        }
        for engine in engines.values():
            engine.wait_until_ready()
        turns = {name: engine.take(Turn(sizes.prompts, batch=1)) for name, engine in engines.items()}
        batched = {name: engine.take(Turn(sizes.prompts, sizes.prompts)) for name, engine in engines.items()}
    captured = CAPTURED in (scratch / "graphs.log").read_text(errors="replace")
    differing = [
        len(differences(pair["eager"]["tokens"], pair["graphs"]["tokens"], [[]] * sizes.prompts))
        for pair in (turns, batched)
    ]
    step = {name: 1e3 * turn["seconds"] / sum(map(len, turn["steps"])) for name, turn in turns.items()}
    summary = (
        f"{'captured' if captured else 'NOT captured'}; {differing[0]} of {sizes.prompts} requests differ at batch 1, "
        f"{differing[1]} at 8; {step['eager']:.2f} ms a step without graphs, {step['graphs']:.2f} with"
    )
    passed = (captured or device != "cuda") and not any(differing)
    return Outcome(passed, summary, {"captured": captured, "differing": differing, "milliseconds_per_step": step})
