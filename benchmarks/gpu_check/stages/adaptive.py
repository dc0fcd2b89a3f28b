# SPDX-License-Identifier: Apache-2.0
"""Trees that adapt, from CUDA graphs of any query lengths: the tokens of plain vLLM, and the speed of fixed trees.

Speed is measured on a target inflated to about a billion parameters, small enough for an engine of each tree to stay in
memory, where a step takes long enough for rows to matter.
"""

from contextlib import ExitStack
from typing import Any

from rich.console import Console

from benchmarks.assets import DRAFTER
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.engines import SIZES, TREE, make_engine
from benchmarks.gpu_check.stages.graphs import CAPTURED, FULL
from benchmarks.gpu_check.stages.identity import MAX_TIES, compare
from benchmarks.gpu_check.stages.speed import NOISE, inflation
from benchmarks.models.inflate.build import DRAFTER_FOLDER
from benchmarks.serving.speedup.__main__ import run as measure
from benchmarks.serving.speedup.options import Options
from benchmarks.serving.speedup.report import print_report, problem_of
from redrafter_vllm.config import DraftingConfig

ADAPTIVE = "adaptive"
FIXED = {"16 nodes": 16, "7 nodes": 7, "3 nodes": 3}
BEHIND = 0.03  # of the best fixed tree's speed, at any batch size
SHAPE = {"cuda": "llama-1b", "cpu": "llama-0.1b"}
NO_ADAPTATION = "trees do not adapt"


def run(call: Call) -> Outcome:
    figures: dict[str, Any] = {"identity": identity(call)}
    call.keep(figures)
    target = call.scratch / "inflated"
    if not target.exists():
        inflation(target, DRAFTER, call.device, SHAPE[call.device]).write()
    figures["speed"] = measure(options(call), lambda report: call.keep(figures | {"speed": report}))
    print_report(figures["speed"], Console(width=160))
    adapts = NO_ADAPTATION not in (call.scratch / f"{ADAPTIVE}.log").read_text(errors="replace")
    return judge(figures, adapts=adapts, on_gpu=call.device == "cuda")


def identity(call: Call) -> dict[str, Any]:
    """Against plain vLLM in float32, where the budget varies from step to step, and is none in some."""
    sizes = SIZES[call.device]
    full: dict[str, Any] = {"compilation_config": FULL} if call.device == "cuda" else {"enforce_eager": True}
    with ExitStack() as stack:
        plain, trees = (
            stack.enter_context(make_engine(name, speculative, sizes, call.scratch, dtype="float32", **chosen))
            for name, speculative, chosen in (
                ("plain-float32", None, {"enforce_eager": True}),
                ("adaptive-float32", {**TREE, "adaptive": True}, full),
            )
        )
        found = compare(plain, trees, sizes.prompts)
    return found | {"captured": CAPTURED in (call.scratch / "adaptive-float32.log").read_text(errors="replace")}


def options(call: Call) -> Options:
    """Options of the measurement on a GPU, or of a rehearsal elsewhere."""
    full, target = call.device == "cuda", call.scratch / "inflated"
    fixed = {name: DraftingConfig(4, 4, nodes, adaptive=False) for name, nodes in FIXED.items()}
    return Options(
        target=target,
        drafter=target / DRAFTER_FOLDER,
        drafting={ADAPTIVE: DraftingConfig(4, 4, 16, adaptive=True), **fixed},
        prompts=8 if full else 2,
        new_tokens=192 if full else 8,
        batches=(1, 8, 32, 64) if full else (1, 2),
        rounds=3 if full else 1,
        all_ways=True,
        device=call.device,
        eager=not full,
        start_seconds=max(1.0, call.left),
        logs=call.scratch,
    )


def judge(figures: dict[str, Any], *, adapts: bool, on_gpu: bool) -> Outcome:
    """Passed if tokens are plain vLLM's and no batch size is slower than without drafts or with the best fixed tree."""
    tokens, report = figures["identity"], figures["speed"]
    faults = [] if adapts else [f"{NO_ADAPTATION}: see the log of this stage"]
    if on_gpu and not tokens["captured"]:
        faults.append("no CUDA graphs were captured")
    if tokens["real"] or max(tokens["greedy"], tokens["seeded"]) > MAX_TIES:
        faults.append(
            f"other tokens than plain vLLM's: greedy {tokens['greedy']} ({len(tokens['real'])} beyond near-ties), "
            f"seeded {tokens['seeded']} of {tokens['requests']} requests"
        )
    faults += [reason for row in report["results"] if (reason := problem_of(row)) is not None]
    faults += [f"{name} failed: {reason}" for name, reason in report["failed"].items()]
    lines = ["times as fast as plain vLLM:"]
    batches = sorted({row["batch"] for row in report["results"]})
    for batch in batches:
        speeds = {row["drafter"]: row["speedup"] for row in report["results"] if row["batch"] == batch}
        own = speeds.pop(ADAPTIVE, 0.0)
        best = max(speeds, key=lambda name: speeds[name], default=None)
        lines.append(f"batch {batch}: {own:.2f}" + (f", {speeds[best]:.2f} with {best}" if best is not None else ""))
        if own < 1 - NOISE:
            faults.append(f"batch {batch}: slower than plain vLLM")
        if best is not None and own < (1 - BEHIND) * speeds[best]:
            faults.append(f"batch {batch}: more than {BEHIND:.0%} slower than with {best}")
    if not batches:
        faults.append("nothing was measured")
    return Outcome(not faults, "\n".join([*lines, *faults]), figures)
