# SPDX-License-Identifier: Apache-2.0
"""Requests whose tokens are those of plain vLLM: greedy and seeded, one at a time and in batches."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from benchmarks import cli
from benchmarks.serving.chat.comparison import described, started
from benchmarks.serving.chat.methods import Method, Outcome
from benchmarks.serving.chat.options import Options
from benchmarks.serving.chat.questions import Asked, Question, Reader, ask, chosen_prompts, passes_of
from benchmarks.serving.chat.report import heat
from redrafter_vllm.bench.compare import Comparison, compare
from redrafter_vllm.bench.tables import Grid
from redrafter_vllm.predict.trees import tree_name

Outcomes = dict[float, Outcome]  # by temperature


def run(options: Options) -> cli.Report:
    """Plain vLLM and every tree, at batch 1 and at the given one; the prompts are the same everywhere.

    Raises:
        ChildError: An engine failed.
    """
    prompts = chosen_prompts(options.prompts, options.categories, options.questions)
    reader = Reader.of(options.serving.target, options.chat_template)
    plain, batches = options.serving.plain_on_our_runner(), sorted({1, options.serving.batch}, reverse=True)
    asked = None
    rows: list[dict[str, Any]] = []
    for batch in batches:
        serving = replace(options.serving, batch=batch)
        sized = replace(options, serving=serving)
        if asked is None:
            turns = sum(len(prompt.turns) for prompt in prompts)
            warm_up = reader.warm_up([prompt.turns[0] for prompt in prompts])
            with started(serving, plain, turns, options.max_tokens, warm_up) as engine:
                asked = ask(
                    engine.process,
                    reader,
                    prompts,
                    max_tokens=options.max_tokens,
                    window=serving.window,
                    finished=engine.finished,
                )
        expected = outcomes(sized, plain, asked, reader)
        for method in serving.redrafters():
            rows += compared(asked, reader, method, batch, expected, outcomes(sized, method, asked, reader))
    assert asked is not None
    return {
        "config": described(options) | {"identity": True},
        "requests": len(asked.questions),
        "left_out": asked.left_out,
        "results": rows,
    }


def outcomes(options: Options, method: Method, asked: Asked, reader: Reader) -> Outcomes:
    """All questions at every temperature on one engine."""
    number = len(asked.questions) * len(options.temperatures)
    warm_up = [list(question.prompt) for question in asked.questions[:2]]
    with started(options.serving, method, number, options.max_tokens, warm_up) as engine:
        return {
            temperature: Outcome.of(
                [
                    engine.process.take(each, engine.finished)
                    for each in passes_of(asked.questions, options.max_tokens, temperature, reader.end_tokens)
                ]
            )
            for temperature in options.temperatures
        }


def compared(
    asked: Asked, reader: Reader, method: Method, batch: int, expected: Outcomes, actual: Outcomes
) -> list[dict[str, Any]]:
    """One row for each temperature."""
    assert method.tree is not None
    rows = []
    for temperature in expected:
        plain, ours = expected[temperature].tokens, actual[temperature].tokens
        found = compare(plain, ours)
        rows.append(
            {
                "tree": tree_name(method.tree),
                "batch": batch,
                "temperature": temperature,
                **asdict(found),
                "difference": difference(asked.questions, found, plain, ours, reader.tokenizer),
            }
        )
    return rows


def difference(
    questions: Sequence[Question],
    found: Comparison,
    plain: Sequence[Sequence[int]],
    ours: Sequence[Sequence[int]],
    tokenizer: Any,
) -> str | None:
    """The first difference in words; None if there is none."""
    if found.first_difference is None:
        return None
    request, position = found.first_difference
    question = questions[request]
    said = [_token(tokens[request], position, tokenizer) for tokens in (plain, ours)]
    before = tokenizer.decode(plain[request][max(0, position - 12) : position])
    return (
        f"request {request} ({question.category or 'no category'}, turn {question.turn + 1}) at token {position}, "
        f"after {before!r}: plain {said[0]}, ReDrafter {said[1]}"
    )


def _token(tokens: Sequence[int], position: int, tokenizer: Any) -> str:
    if position >= len(tokens):
        return "has ended"
    return f"{tokens[position]} ({tokenizer.decode([tokens[position]])!r})"


def grid(report: cli.Report) -> Grid:
    """Identical requests and tokens."""
    rows = [
        [
            row["tree"],
            str(row["batch"]),
            heat(row["temperature"]),
            f"{row['same_requests']} of {row['requests']}",
            f"{row['same_tokens']} of {row['tokens']}",
        ]
        for row in report["results"]
    ]
    config = report["config"]
    title = f"{config['prompts']}, {config['dtype']}: requests and tokens that are those of plain vLLM"
    return Grid(title, ["tree", "batch", "sampling", "requests", "tokens"], rows)


def show(report: cli.Report, console: Console) -> None:
    console.print(grid(report).rich())
    for row in report["results"]:
        if row["difference"] is not None:
            where = f"{row['tree']}, batch {row['batch']}, {heat(row['temperature'])}"
            console.print(f"{where}: first difference in {row['difference']}", markup=False, style="red")


def identical(report: cli.Report) -> bool:
    return all(row["first_difference"] is None for row in report["results"])
