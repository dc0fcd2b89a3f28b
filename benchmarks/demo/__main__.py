# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.demo`: train a drafter, serve with it, compare with plain vLLM, report."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from benchmarks.assets import ROOT
from benchmarks.demo.colour import ACCEPTED, coloured
from benchmarks.demo.options import DemoOptions, parse_args
from benchmarks.demo.report import Evidence, as_json, evaluate, print_tables, with_relative_paths
from benchmarks.demo.serve import serve_and_complete
from benchmarks.demo.train import obtain_drafter, obtain_target
from benchmarks.demo.workload import load_tokenizer, make_workload
from benchmarks.engine_process import ChildError
from benchmarks.engines.offline import as_users_run_it, plain, run_engine, with_redrafter
from benchmarks.record import store


def gather(options: DemoOptions, console: Console) -> tuple[Evidence, Any]:
    """Run all steps; the evidence and the target's tokenizer."""
    started = time.monotonic()
    console.rule("1  target and drafter", align="left")
    target = obtain_target(options, console).resolve()
    drafter = obtain_drafter(target, options, console).resolve()
    tokenizer = load_tokenizer(target)
    workload = make_workload(tokenizer, options)

    console.rule("2  vllm serve --speculative-model redrafter", align="left")
    drafting = options.drafting
    speculative = {
        "method": "redrafter",
        "model": str(drafter),
        "beam_width": drafting.beam_width,
        "beam_length": drafting.beam_length,
        "num_speculative_tokens": drafting.num_speculative_tokens,
    }
    served = serve_and_complete(target, drafter, workload, options.out, console)

    console.rule("3  LLM.generate, with and without", align="left")
    kinds = (as_users_run_it(torch.cuda.is_available()), plain(), with_redrafter(speculative))
    installed, ordinary, ours = (run_engine(kind, target, workload, options.out, console) for kind in kinds)
    seconds = time.monotonic() - started
    return Evidence(target, drafter, options, workload, served, installed, ordinary, ours, seconds), tokenizer


def show_completion(evidence: Evidence, tokenizer: Any, console: Console) -> None:
    """Print one completion: of the first nine, the one with the median of tokens per step."""
    run = evidence.redrafter.greedy
    by_saving = sorted(range(min(9, len(run.steps))), key=lambda index: len(run.steps[index]) / len(run.tokens[index]))
    chosen = by_saving[len(by_saving) // 2]
    tokens, steps = run.tokens[chosen], run.steps[chosen]
    brackets = console.color_system is None
    console.print(f"\nOne completion: {len(tokens)} tokens in {len(steps)} steps. ", end="", highlight=False)
    console.print("«Accepted drafts»" if brackets else "Accepted drafts", style=ACCEPTED, end="", markup=False)
    console.print(" are marked; the target emitted the rest itself, the last of each step. First the prompt's end.\n")
    text = coloured(evidence.workload.texts[chosen], tokens, steps, tokenizer.decode, brackets=brackets)
    console.print(text, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parse_args(argv)
    console = Console()
    # Without this a terminated demonstration would leave its server running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        evidence, tokenizer = gather(options, console)
    except (ChildError, subprocess.CalledProcessError) as error:
        console.print(f"The demonstration stopped: {error}", style="bold red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the server and the engines have been stopped")
        return 130
    figures = evaluate(evidence)
    console.rule("4  results", align="left")
    print_tables(evidence, figures, console)
    show_completion(evidence, tokenizer, console)
    path = options.out / "report.json"
    store(path, as_json(with_relative_paths(evidence, ROOT), figures, argv))
    console.print(f"\n{evidence.seconds:.0f} s in total; the report is {path}")
    for failure in figures.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
