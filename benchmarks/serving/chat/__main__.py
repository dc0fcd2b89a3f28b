# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.serving.chat --target DIR`: tokens per step on chat prompts, and `--identity` with plain vLLM.

A table for each temperature has vLLM as installed, its prompt lookup and suffix decoding, and every tree of ReDrafter,
served and simulated. All engines continue the same prompts. The simulation walks along the texts that the same tree
emitted when serving, so a difference is one of counting or of rounding, not of the text.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import cli
from benchmarks.serving.chat.options import MODULE, Options, parse_args

# What computes is imported where it runs, since --help must not wait for torch and transformers.


def measure(options: Options, console: Console) -> cli.Report:
    if options.identity:
        from benchmarks.serving.chat import identity

        return identity.run(options)
    from benchmarks.serving.chat import comparison

    return comparison.run(options)


def show(report: cli.Report, console: Console) -> None:
    from benchmarks.serving.chat import identity
    from benchmarks.serving.chat import report as tables

    (identity.show if "identity" in report["config"] else tables.show)(report, console)


def store(report: cli.Report, file: Path) -> list[Path]:
    from benchmarks.serving.chat import identity
    from benchmarks.serving.chat import report as tables
    from redrafter_vllm.utils.atomic import write_text

    if "identity" not in report["config"]:
        return tables.store(report, file)
    markdown = file.with_suffix(".md")
    write_text(markdown, identity.grid(report).markdown())
    return [markdown]


def passed(report: cli.Report) -> bool:
    from benchmarks.serving.chat import comparison, identity

    if "identity" in report["config"]:
        return identity.identical(report)
    ours_failed = any(name.startswith("ReDrafter") for name in report["failed"])
    return not ours_failed and (not report["config"]["check"] or comparison.agreed(report))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(
        MODULE,
        argv,
        parse_args,
        measure,
        show,
        passed=passed,
        name=lambda options: options.name,
        beside=store,
    )


if __name__ == "__main__":
    sys.exit(main())
