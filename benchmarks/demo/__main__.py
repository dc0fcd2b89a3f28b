# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.demo`: serve a chat model with a drafter, compare with plain vLLM, measure both, report."""

import signal
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.assets import ROOT
from benchmarks.demo.options import parse_args
from benchmarks.record import store
from redrafter_vllm.bench.child import ChildError


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parse_args(argv)
    # Here, as they take seconds to import, which the help and impossible options do not need.
    from benchmarks.demo import report
    from benchmarks.demo.steps import gather

    console = Console()
    # Without this a terminated demonstration would leave its server running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        evidence, tokenizer = gather(options, console)
    except (ChildError, ValueError, subprocess.CalledProcessError) as error:
        console.print(f"The demonstration stopped: {error}", style="bold red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the server and the engines have been stopped")
        return 130
    figures = report.evaluate(evidence)
    console.rule("5  results", align="left")
    report.print_tables(evidence, figures, console)
    report.print_answer(evidence, tokenizer, console)
    path = options.out / "report.json"
    store(path, report.as_json(evidence, figures, argv, ROOT))
    report.print_next_steps(evidence.pair, console)
    console.print(f"\n{evidence.seconds:.0f} s in total; the report is {path}", soft_wrap=True)
    for failure in figures.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
