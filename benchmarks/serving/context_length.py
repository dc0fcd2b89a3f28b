# SPDX-License-Identifier: Apache-2.0
"""Tokens per step by the length of the context.

`python -m benchmarks.serving.context_length --target DIR` asks the same questions at every length, each as the last
turn of a conversation: the turns in front of it are other prompts (summaries, retrieval, chats) with the target's own
answers, and the first of them is cut so that the length is met. Plain vLLM answers greedily; the training package's
walk counts the steps along the answers, and with `--served` an engine with ReDrafter does.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import cli
from benchmarks.engines.passes import Pass
from benchmarks.record import RESULTS
from benchmarks.serving.chat.methods import Method, Outcome, Serving
from benchmarks.serving.chat.options import add_serving, parsed_serving
from redrafter_vllm.bench.acceptance import acceptance_of_steps, tokens_per_step
from redrafter_vllm.bench.tables import Grid, figure, plot
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.trees import tree_name
from redrafter_vllm.utils.atomic import write_text

if TYPE_CHECKING:
    from benchmarks.serving.chat.comparison import Started
    from benchmarks.serving.chat.questions import Reader

Prompts = dict[int, list[list[int]]]  # token ids, by length

# What computes is imported where it runs, since --help must not wait for torch and transformers.

MODULE = "benchmarks.serving.context_length"
LENGTHS = (256, 1024, 2048, 4096, 8192)
TREES = ("4x4",)
FLAT = 0.95  # of the value at the shortest length, the least that `--check` takes at any other
FILLERS = 24  # exchanges that conversations are padded with
FILLER_TOKENS = 192  # of each of their answers, at most


@dataclass(frozen=True)
class Options:
    """What is asked at which lengths."""

    serving: Serving
    lengths: tuple[int, ...] = LENGTHS
    prompts: str = "mt-bench"
    questions: int = 16
    max_tokens: int = 256
    chat_template: str | None = None
    served: bool = False
    check: bool = False
    device: str = "cpu"
    out: Path = RESULTS

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions must be at least 1, not {self.questions}")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, not {self.max_tokens}: the first comes with the prompt")
        if not self.lengths or min(self.lengths) < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths must be positive and rise, not {list(self.lengths)}")


def run(options: Options, console: Console) -> cli.Report:
    """The report that `show` prints.

    Raises:
        ChildError: An engine failed.
        ValueError: There are too few questions, or too little text to pad them with.
    """
    from benchmarks.serving.chat import padding
    from benchmarks.serving.chat.questions import Reader

    serving = options.serving
    reader = Reader.of(serving.target, options.chat_template)
    lengths = prompt_lengths(options, serving.max_model_len)
    questions = padding.short_questions(reader, options.prompts, options.questions, longest=min(lengths.values()))
    fillers = padding.filler_prompts(FILLERS, apart_from=questions)
    asked = len(questions) * len(lengths)
    with running(options, serving.plain(), reader, questions, asked + len(fillers)) as engine:
        exchanges = padding.answered(engine, reader, fillers, max_tokens=FILLER_TOKENS, longest=max(lengths.values()))
        prompts = {
            length: [
                padding.padded(reader, question, padding.rotated(exchanges, number), tokens)
                for number, question in enumerate(questions)
            ]
            for length, tokens in lengths.items()
        }
        plain = taken(options, engine, reader, prompts)
    rows = simulated(options, prompts, plain)
    for method in serving.redrafters() if options.served else ():
        with running(options, method, reader, questions, asked) as engine:
            outcomes = taken(options, engine, reader, prompts)
        assert method.tree is not None
        rows += rows_of(method.tree, prompts, {length: each.steps for length, each in outcomes.items()}, served=True)
    return {
        "config": {
            **{name: str(getattr(serving, name)) for name in ("target", "drafter", "dtype")},
            **{name: getattr(options, name) for name in ("prompts", "questions", "max_tokens", "lengths", "check")},
        },
        "results": rows,
    }


def prompt_lengths(options: Options, max_model_len: int) -> dict[int, int]:
    """Tokens of the prompts at each length: less where the target has no room for a response and two trees behind."""
    rows = 1 + max(tree.num_speculative_tokens for tree in options.serving.trees)
    room = max_model_len - options.max_tokens - 2 * rows
    if room < 1:
        raise ValueError(f"the target's {max_model_len} tokens have no room for a response of {options.max_tokens}")
    return {length: min(length, room) for length in options.lengths}


def running(
    options: Options, method: Method, reader: "Reader", questions: Sequence[str], requests: int
) -> AbstractContextManager["Started"]:
    from benchmarks.serving.chat.comparison import started

    return started(options.serving, method, requests, options.max_tokens, reader.warm_up(questions))


def taken(options: Options, engine: "Started", reader: "Reader", prompts: Prompts) -> dict[int, Outcome]:
    """The engine's greedy responses at each length."""
    return {
        length: Outcome.of(
            [engine.process.take(Pass(own, options.max_tokens, end_tokens=reader.end_tokens), engine.finished)]
        )
        for length, own in prompts.items()
    }


def simulated(options: Options, prompts: Prompts, outcomes: dict[int, Outcome]) -> list[dict[str, Any]]:
    """Rows of all trees along the responses of plain vLLM."""
    from benchmarks.serving.chat.simulated import Walker

    serving = options.serving
    walker = Walker.load(serving.target, serving.drafter, serving.dtype, serving.device)
    walked = {}
    for length, own in prompts.items():
        texts = [(tuple(one), tuple(said)) for one, said in zip(own, outcomes[length].tokens, strict=True)]
        walked[length] = walker.steps(dict.fromkeys(serving.trees, texts), f"simulated, {length} tokens of context")
    return [
        row
        for tree in serving.trees
        for row in rows_of(tree, prompts, {length: found[tree] for length, found in walked.items()}, served=False)
    ]


def rows_of(
    tree: DraftingConfig, prompts: Prompts, steps: Mapping[int, Sequence[Sequence[int]]], *, served: bool
) -> list[dict[str, Any]]:
    """Figures at each length; `relative` is the part of the value at the shortest."""
    values = {length: tokens_per_step(own) for length, own in steps.items()}
    shortest = values[min(values)]
    return [
        {
            "length": length,
            "prompt_tokens": sum(map(len, prompts[length])) / len(prompts[length]),
            "tree": tree_name(tree),
            "served": served,
            "tokens_per_step": value,
            "standard_error": standard_error(steps[length]),
            "relative": value / shortest,
            "acceptance_by_depth": acceptance_of_steps(steps[length], tree.max_depth),
            "steps": sum(len(request) - 1 for request in steps[length]),
        }
        for length, value in values.items()
    ]


def standard_error(steps: Sequence[Sequence[int]]) -> float:
    """Of tokens per step, a ratio of two sums over requests."""
    ratio, verifications = tokens_per_step(steps), sum(len(request) - 1 for request in steps)
    residuals = [sum(request[1:]) - ratio * (len(request) - 1) for request in steps]
    return math.sqrt(sum(residual**2 for residual in residuals)) / verifications


def grid(report: cli.Report) -> Grid:
    depth = max(len(row["acceptance_by_depth"]) for row in report["results"])
    columns = ["context", "prompt tokens", "tree", "counted", "tokens/step", "±", "of the shortest's"]
    rows = [
        [
            str(row["length"]),
            f"{row['prompt_tokens']:.0f}",
            row["tree"],
            "served" if row["served"] else "simulated",
            figure(row["tokens_per_step"]),
            figure(row["standard_error"]),
            f"{row['relative']:.1%}",
            *(figure(value) for value in row["acceptance_by_depth"]),
            *["–"] * (depth - len(row["acceptance_by_depth"])),
        ]
        for row in report["results"]
    ]
    config = report["config"]
    title = (
        f"{config['questions']} questions of {config['prompts']}, greedy, at most {config['max_tokens']} tokens each: "
        "tokens per step by context"
    )
    return Grid(title, [*columns, *(f"depth {d}" for d in range(1, depth + 1))], rows)


def show(report: cli.Report, console: Console) -> None:
    console.print(grid(report).rich())
    for row in below(report):
        kind = "served" if row["served"] else "simulated"
        console.print(
            f"{row['tree']}, {kind}, {row['length']} tokens: {row['relative']:.1%} of the value at the shortest "
            f"context, less than {FLAT:.0%}",
            style="red",
        )


def below(report: cli.Report) -> list[dict[str, Any]]:
    """The rows that are less than `FLAT` of the value at the shortest context."""
    return [row for row in report["results"] if row["relative"] < FLAT]


def store(report: cli.Report, file: Path) -> list[Path]:
    """Markdown and PNG beside the record."""
    markdown = file.with_suffix(".md")
    write_text(markdown, grid(report).markdown())
    return [markdown, *plot(file.with_suffix(".png"), lambda axes: draw(report, axes))]


def draw(report: cli.Report, axes: Any) -> None:
    for tree, served in dict.fromkeys((row["tree"], row["served"]) for row in report["results"]):
        rows = [row for row in report["results"] if (row["tree"], row["served"]) == (tree, served)]
        axes.errorbar(
            [row["prompt_tokens"] for row in rows],
            [row["tokens_per_step"] for row in rows],
            yerr=[row["standard_error"] for row in rows],
            fmt="o--" if served else "o-",
            capsize=3,
            label=f"{tree}, {'served' if served else 'simulated'}",
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of the prompt", ylabel="tokens per step", title=grid(report).title, ylim=(1, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Tokens per step by the length of the context, on the same questions.")
    add_serving(parser, trees=TREES, batch=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the prompts, rising")
    parser.add_argument("--prompts", default="mt-bench", help='mt-bench, spec-bench, or a file of {"turns": …} lines')
    parser.add_argument("--questions", type=int, default=16, help="questions asked at each length")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens that each prompt is continued by")
    parser.add_argument("--served", action="store_true", help="also count the steps of an engine with ReDrafter")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit with 1 if any length has less than {FLAT:.0%}% of the tokens per step at the shortest",
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    try:
        return Options(
            serving=parsed_serving(args, window=max(args.lengths) + args.max_tokens, trees=TREES),
            lengths=tuple(args.lengths),
            prompts=args.prompts,
            questions=args.questions,
            max_tokens=args.max_tokens,
            chat_template=args.chat_template,
            served=args.served,
            check=args.check,
            device=args.device,
            out=args.out,
        )
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(
        MODULE,
        argv,
        parse_args,
        run,
        show,
        passed=lambda report: not (report["config"]["check"] and below(report)),
        beside=store,
    )


if __name__ == "__main__":
    sys.exit(main())
