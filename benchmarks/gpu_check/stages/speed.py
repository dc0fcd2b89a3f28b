# SPDX-License-Identifier: Apache-2.0
"""Speed-up on a target inflated to Vicuna-7B's shape: a small pair's real acceptance at a large target's cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.assets import ASSET, DRAFTER, SLIM_DRAFTER
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.models.inflate.build import DRAFTER_FOLDER, Inflation
from benchmarks.models.inflate.build import Options as InflateOptions
from benchmarks.serving.speedup.__main__ import run as measure
from benchmarks.serving.speedup.options import Options
from benchmarks.serving.speedup.report import print_report, problem_of
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.shapes import find_shape

EFFICIENCY = 0.90  # minimum at batch 1 with the fastest drafter: speed-up of decoding / tokens per step
NOISE = 0.02  # of medians of three rounds; without drafts both engines do the same
SHAPE = {"cuda": "vicuna-7b", "cpu": "llama-0.1b"}
DRAFT_TOKENS = 8000
# The slim drafter has half the bytes and 2 % fewer tokens per step (docs/dev/log.md); INT8 halves the bytes again.
FASTEST, AS_STORED = "slim, INT8, W·E as a table", "as stored"
# Up to about 128 rows (4 requests of 17, or 16 of 8) a step takes about the same time. With 64 requests of several rows
# the arithmetic would dominate; without drafts they take the time of plain vLLM.
SCHEDULE = {"cuda": ((1, 4, 16), (5, 16, 7), (17, 64, 0)), "cpu": ((1, 1, 16), (2, 2, 0))}


def run(call: Call) -> Outcome:
    target = call.scratch / "inflated"
    if not target.exists():
        inflation(target, DRAFTER, call.device, SHAPE[call.device]).write()
    if not (target / SLIM_DRAFTER).exists():
        inflation(target, SLIM_DRAFTER, call.device, SHAPE[call.device]).write_drafter(target / SLIM_DRAFTER)
    report = measure(options(call, target), call.keep)
    print_report(report, Console(width=160))
    return judge(report, SHAPE[call.device])


def inflation(target: Path, drafter: str, device: str, shape: str) -> Inflation:
    """Of the committed target with one of its drafters."""
    return Inflation(
        InflateOptions(
            model=ASSET,
            shape=find_shape(shape),
            out=target,
            drafter=ASSET / drafter,
            draft_vocab_size=DRAFT_TOKENS,
        )
    )


def options(call: Call, target: Path) -> Options:
    """Options of the measurement on a GPU, or of a rehearsal elsewhere."""
    full = call.device == "cuda"
    beams = DraftingConfig(beam_width=4, beam_length=4)
    return Options(
        target=target,
        drafter=target / DRAFTER_FOLDER,
        drafting={
            FASTEST: replace(beams, drafter_quantization="int8", project_embedding=True),
            AS_STORED: beams,
        },
        drafters={FASTEST: target / SLIM_DRAFTER},
        schedule=SCHEDULE[call.device],
        prompts=8 if full else 2,
        new_tokens=256 if full else 8,
        batches=(1, 4, 16, 64) if full else (1, 2),
        rounds=3 if full else 1,
        device=call.device,
        eager=not full,
        start_seconds=max(1.0, call.left),
        logs=call.scratch,
    )


def judge(report: dict[str, Any], shape: str) -> Outcome:
    """Passed if the fastest drafter is efficient at batch 1 and no batch size is slower than plain vLLM."""
    rows = report["results"]
    alone = [row for row in rows if row["batch"] == 1]
    faults = [reason for row in rows if (reason := problem_of(row)) is not None]
    faults += [f"{name} failed: {reason}" for name, reason in report["failed"].items()]
    efficient = any(row["drafter"] == FASTEST and row["efficiency"] >= EFFICIENCY for row in alone)
    passed = efficient and min(row["speedup"] for row in rows) >= 1 - NOISE and not faults
    lines = [f"{shape}, times as fast as plain vLLM:"]
    lines += [f"{row['drafter']}, batch {row['batch']}, {row['nodes']} nodes: {row['speedup']:.2f}" for row in rows]
    lines += [
        f"{row['drafter']}: decoding {row['decode_speedup']:.2f}, efficiency {row['efficiency']:.3f} of at most "
        f"{row['efficiency_ceiling']:.3f}"
        for row in alone
    ]
    return Outcome(passed, "\n".join([*lines, *faults]), report)
