# SPDX-License-Identifier: Apache-2.0
"""End to end on a target inflated to Vicuna-7B's shape: a small pair's real acceptance at a large target's cost."""

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.demo.options import ASSET
from benchmarks.gpu_stages import Outcome
from benchmarks.inflate.build import DRAFTER_FOLDER, Inflation
from benchmarks.inflate.build import Options as InflateOptions
from benchmarks.shapes import find_shape
from benchmarks.speedup.__main__ import Options, print_report
from benchmarks.speedup.__main__ import run as measure
from redrafter_vllm.config import DraftingConfig

EFFICIENCY = 0.90  # at batch 1: the speed-up divided by the tokens per step
SHAPE = {"cuda": "vicuna-7b", "cpu": "llama-0.1b"}
DRAFT_TOKENS = 8000


def run(device: str, scratch: Path) -> Outcome:
    target = scratch / "inflated"
    if not target.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        Inflation(
            InflateOptions(
                model=ASSET,
                shape=find_shape(SHAPE[device]),
                out=target,
                drafter=ASSET / "redrafter",
                draft_vocab_size=DRAFT_TOKENS,
            )
        ).write()
    report = measure(options(device, target))
    print_report(report, Console(width=140))
    return judge(report, SHAPE[device])


def options(device: str, target: Path) -> Options:
    """Batch sizes of the issue on a GPU, a rehearsal elsewhere."""
    full = device == "cuda"
    return Options(
        target=target,
        drafter=target / DRAFTER_FOLDER,
        drafting=DraftingConfig(beam_width=4, beam_length=4),
        prompts=8 if full else 2,
        new_tokens=64 if full else 8,
        batches=(1, 4, 16, 64) if full else (1, 2),
        rounds=3 if full else 1,
        device=device,
        eager=not full,
    )


def judge(report: dict[str, Any], shape: str) -> Outcome:
    """Batch 1 must be efficient, and no batch may be slower than plain vLLM."""
    rows = {row["batch"]: row for row in report["results"]}
    speedups = {batch: row["speedup"] for batch, row in rows.items()}
    passed = rows[1]["efficiency"] >= EFFICIENCY and min(speedups.values()) >= 1
    listed = ", ".join(f"{ratio:.2f} at batch {batch}" for batch, ratio in speedups.items())
    summary = f"{shape}: {listed} times as fast as plain vLLM; efficiency {rows[1]['efficiency']:.2f} at batch 1"
    return Outcome(passed, summary, report)
