# SPDX-License-Identifier: Apache-2.0
"""All checks that need a GPU, in 8 minutes: `python -m benchmarks.gpu_check`.

Each stage runs in a separate process with a time limit, the most important ones first. Its findings are stored in a
file as soon as they are made, so those of a stopped stage are kept. The next call does not repeat a stage that has
passed and so continues an interrupted call; `--bundle` and `--resume` move the files from one machine to another.
Findings of a stage that passed with different code are kept and marked as such; `--again` repeats all stages.
`--device cpu` rehearses the script on any machine, with tiny sizes: its figures mean nothing and are not recorded
among the results.
"""

import hashlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import cli
from benchmarks.assets import BUILD, ROOT
from benchmarks.gpu_check.stages import outcome_file
from benchmarks.gpu_check.stages.bundle import pack, unpack
from benchmarks.record import RESULTS, record, store
from redrafter_vllm.bench.child import ChildError, run_to_end
from redrafter_vllm.utils.paths import user_path

MODULE = "benchmarks.gpu_check"
MIN_SECONDS = 10.0  # with less left, no stage is started
PASSED, STALE = "passed", "passed with other code"


@dataclass(frozen=True)
class Stage:
    """A module of `benchmarks.gpu_check.stages`, what it shows, and its time limit in seconds."""

    name: str
    shows: str
    limit: float


# In the order of importance, as there may be no time for the last ones. The limits are far above the usual times.
STAGES = (
    Stage("machine", "GPU, driver, bandwidth", 30),
    Stage("draft_round", "a drafting round against its byte floor", 60),
    Stage("speed", "end to end at Vicuna-7B's shape", 240),
    Stage("kernels", "kernels against references", 120),
    Stage("identity", "the tokens of plain vLLM", 90),
    Stage("no_sync", "no synchronization in a decode step", 60),
    Stage("graphs", "graphs captured, same tokens", 90),
    Stage("adaptive", "adaptive against fixed trees, same tokens", 180),
    Stage("kernel_times", "kernels against their byte floors", 60),
)


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    device: str
    stages: tuple[Stage, ...]
    seconds: float
    again: bool
    out: Path
    bundle: Path | None = None
    resume: Path | None = None


Found = dict[str, dict[str, Any]]  # status, summary, seconds and figures of each stage, by name


def run_stages(options: Options, console: Console, found: Found) -> None:
    """Add each stage's findings to `found` as soon as the stage has ended."""
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        found[stage.name] = stored_or_run(stage, options, deadline, console)
        if options.bundle is not None:
            pack(options.out, options.bundle)


def stored_or_run(stage: Stage, options: Options, deadline: float, console: Console) -> dict[str, Any]:
    kept = options.out / f"{stage.name}.json"
    if kept.is_file() and not options.again:
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["status"] == PASSED:
            return found if found.get("code") == code_digest() else found | {"status": STALE}
    left = deadline - time.monotonic()
    if left < MIN_SECONDS:
        return {"status": "not run", "summary": "no time was left; call again to continue", "seconds": 0.0}
    # The speed of a rehearsal does not matter.
    limit = min(stage.limit, left) if options.device == "cuda" else left
    found = run_stage(stage, options, limit, console)
    store(kept, found)
    return found


def run_stage(stage: Stage, options: Options, limit: float, console: Console) -> dict[str, Any]:
    """Run one stage. One that crashes or exceeds `limit` has failed, and its figures up to then are kept."""
    result, log = outcome_file(options.out / stage.name), options.out / f"{stage.name}.log"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check.stages",
        stage.name,
        options.device,
        str(limit),
        str(options.out),
    ]
    started = time.monotonic()
    try:
        run_to_end(command, log, {}, stage.shows, console, limit, ROOT)
        outcome = json.loads(result.read_text())
    except ChildError as error:
        figures = json.loads(result.read_text())["figures"] if result.is_file() else {}
        outcome = {"passed": False, "summary": str(error), "figures": figures}
    return {
        "status": PASSED if outcome["passed"] else "FAILED",
        "code": code_digest(),
        "summary": outcome["summary"],
        "seconds": time.monotonic() - started,
        "figures": outcome["figures"],
    }


def code_digest() -> str:
    """Digest of all code that a stage may run; when it changes, findings may no longer hold."""
    digest = hashlib.sha256()
    for folder in ("redrafter_vllm", "training", "benchmarks", "tests", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def print_table(found: Found, console: Console) -> None:
    table = Table(title="GPU check", title_justify="left")
    for column in ("stage", "status", "s", "found"):
        table.add_column(column)
    for name, stage in found.items():
        # As `Text`, because brackets in a log are not markup.
        table.add_row(name, stage["status"], f"{stage['seconds']:.0f}", Text(stage["summary"]))
    console.print(table)


def parse_args(argv: Sequence[str]) -> Options:
    names = [stage.name for stage in STAGES]
    parser = cli.make_parser(MODULE, "All checks that need a GPU; call again to repeat those that have not passed.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only rehearse the script")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of this call")
    parser.add_argument("--again", action="store_true", help="also repeat stages that have passed")
    parser.add_argument("--out", type=user_path, default=BUILD / "gpu-check", help="folder for logs and findings")
    parser.add_argument(
        "--bundle", type=user_path, metavar="FILE.tar.gz", help="archive to write, with all findings and logs"
    )
    parser.add_argument("--resume", type=user_path, metavar="FILE.tar.gz", help="archive to continue from")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --device cpu rehearses the script")
    if args.minutes <= 0:
        parser.error(f"--minutes must be positive, not {args.minutes}")
    if args.resume is not None and not args.resume.is_file():
        parser.error(f"--resume: there is no file {args.resume}")
    stages = tuple(stage for stage in STAGES if stage.name in args.only)
    out = args.out.resolve() / args.device
    return Options(args.device, stages, 60 * args.minutes, args.again, out, args.bundle, args.resume)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options, console, found = parse_args(argv), Console(), Found()
    if options.resume is not None:
        unpack(options.resume, options.out)
    try:
        run_stages(options, console, found)
    finally:
        report(options, argv, found, console)
    return 0 if all(stage["status"] == PASSED for stage in found.values()) else 1


def report(options: Options, argv: Sequence[str], found: Found, console: Console) -> None:
    """Print, record and archive the findings, complete or not."""
    print_table(found, console)
    folder = RESULTS if options.device == "cuda" else options.out
    file = record(MODULE, argv, {"stages": found}, folder, options.device)
    console.print(file)
    if options.bundle is not None:
        pack(options.out, options.bundle, file)
        console.print(options.bundle)


if __name__ == "__main__":
    # Raises SystemExit on SIGTERM, so that findings are kept and engines end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
