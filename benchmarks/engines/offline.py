# SPDX-License-Identifier: Apache-2.0
"""The same prompts through `LLM.generate`, on engines of different kinds."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.assets import ROOT
from redrafter_vllm.bench.acceptance import DraftCounters
from redrafter_vllm.bench.child import run_to_end
from redrafter_vllm.bench.kinds import EngineKind

BATCH = 8
MAX_MODEL_LEN = 1024

# float32, so that rounding does not blur a comparison; eager, because compilation takes longer than the prompts.
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": BATCH,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 28,
}

# On a small target a second thread gains nothing; on shared cores its active waiting makes steps several times slower.
THREADS = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@dataclass(frozen=True)
class Workload:
    """Prompts as text and as token ids, and how they are continued. Request i samples with seed i."""

    texts: list[str]
    prompts: list[list[int]]
    max_tokens: int
    temperature: float


@dataclass(frozen=True)
class Run:
    """One pass over all prompts."""

    tokens: list[list[int]]
    steps: list[list[int]]  # by request, tokens that each of its steps emitted
    seconds: float
    counters: DraftCounters

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


@dataclass(frozen=True)
class EngineResult:
    """What one engine generated, and how long it took."""

    runner: str
    start_seconds: float
    greedy: Run
    seeded: Run


def run_engine(kind: EngineKind, target: Path, workload: Workload, folder: Path, console: Console) -> EngineResult:
    """Run all prompts on an engine of this kind, in a separate process.

    Raises:
        ChildError: The engine failed.
    """
    stem = kind.name.lower().replace(",", "").replace(" ", "-")
    job_file, result_file = folder / f"{stem}.job.json", folder / f"{stem}.result.json"
    folder.mkdir(parents=True, exist_ok=True)
    result_file.unlink(missing_ok=True)
    job = {
        "target": str(target),
        "speculative": kind.speculative,
        "engine": {**ENGINE, "disable_log_stats": False, "skip_tokenizer_init": True},
        "prompts": workload.prompts,
        "max_tokens": workload.max_tokens,
        "temperature": workload.temperature,
    }
    job_file.write_text(json.dumps(job))
    command = [sys.executable, "-m", "benchmarks.engines.generate", str(job_file), str(result_file)]
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **THREADS, **kind.env}
    what = f"{kind.name}: {len(workload.prompts)} prompts twice"
    run_to_end(command, folder / f"{stem}.log", env, what, console, folder=ROOT)
    return parse_result(json.loads(result_file.read_text()))


def parse_result(stored: dict[str, Any]) -> EngineResult:
    """The result that `benchmarks.engines.generate` wrote."""
    runs = {
        name: Run(
            tokens=stored[name]["tokens"],
            steps=stored[name]["steps"],
            seconds=stored[name]["seconds"],
            counters=DraftCounters.from_dict(stored[name]["counters"]),
        )
        for name in ("greedy", "seeded")
    }
    return EngineResult(stored["runner"], stored["start_seconds"], **runs)
