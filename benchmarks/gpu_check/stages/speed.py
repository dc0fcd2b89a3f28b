# SPDX-License-Identifier: Apache-2.0
"""End to end on a target inflated to Vicuna-7B's shape: a small pair's real acceptance at a large target's cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.demo.options import ASSET
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.models.inflate.build import DRAFTER_FOLDER, Inflation
from benchmarks.models.inflate.build import Options as InflateOptions
from benchmarks.models.shapes import find_shape
from benchmarks.serving.speedup.__main__ import run as measure
from benchmarks.serving.speedup.options import Options
from benchmarks.serving.speedup.report import complaint, print_report
from redrafter_vllm.config import DraftingConfig

EFFICIENCY = 0.90  # at batch 1, of the fastest drafter: the speed-up of decoding divided by the tokens per step
NOISE = 0.02  # medians of three rounds are not known better; without drafts, both engines do the same
SHAPE = {"cuda": "vicuna-7b", "cpu": "llama-0.1b"}
DRAFT_TOKENS = 8000
# Half the bytes for 2 % of the tokens per step (docs/dev/log.md), and those of one byte a number.
SLIM = "redrafter-slim"
FASTEST, AS_STORED = "slim, INT8, W·E as a table", "as stored"
# Rows are as good as free up to about 128: 4 requests of 17 or 16 of 8. 64 requests of several rows each would cost
# arithmetic, and without drafts they are plain vLLM's.
SCHEDULE = {"cuda": ((1, 4, 16), (5, 16, 7), (17, 64, 0)), "cpu": ((1, 1, 16), (2, 2, 0))}


def run(call: Call) -> Outcome:
    target = call.scratch / "inflated"
    if not target.exists():
        inflation(target, "redrafter", call.device).write()
    if not (target / SLIM).exists():
        inflation(target, SLIM, call.device).write_drafter(target / SLIM)
    report = measure(options(call, target), call.keep)
    print_report(report, Console(width=160))
    return judge(report, SHAPE[call.device])


def inflation(target: Path, drafter: str, device: str) -> Inflation:
    """Of the committed target with one of its drafters."""
    return Inflation(
        InflateOptions(
            model=ASSET,
            shape=find_shape(SHAPE[device]),
            out=target,
            drafter=ASSET / drafter,
            draft_vocab_size=DRAFT_TOKENS,
        )
    )


def options(call: Call, target: Path) -> Options:
    """Batch sizes of the issue on a GPU, a rehearsal elsewhere."""
    full = call.device == "cuda"
    beams = DraftingConfig(beam_width=4, beam_length=4)
    return Options(
        target=target,
        drafter=target / DRAFTER_FOLDER,
        drafting={
            FASTEST: replace(beams, drafter_quantization="int8", project_embedding=True),
            AS_STORED: beams,
        },
        drafters={FASTEST: target / SLIM},
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
    """The fastest drafter must be efficient at batch 1, and no batch may be slower than plain vLLM."""
    rows = report["results"]
    alone = [row for row in rows if row["batch"] == 1]
    faults = [reason for row in rows if (reason := complaint(row)) is not None]
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
