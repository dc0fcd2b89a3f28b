# SPDX-License-Identifier: Apache-2.0
"""How soon trees adapt to text of which nothing can be drafted.

`python -m benchmarks.serving.adaptation --target DIR` starts engines afresh, one after the other, each of which
continues prompts of random tokens at a temperature of 1. A step is compared with the nearest ones of the same engine
that neither verified drafts nor drew any: other engines, and other minutes, differ by more than what is looked for.
On a CPU only, as on a GPU the host does not know when a step ends. What such steps are against plain vLLM's,
`redrafter bench offline --data random --temperature 1` shows.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple
from unittest.mock import patch

from rich.console import Console
from tqdm import tqdm

from benchmarks import cli
from benchmarks.assets import BUILD
from benchmarks.record import RESULTS
from redrafter_vllm.bench.engine import EngineProcess, Finished, Job
from redrafter_vllm.bench.tables import Grid, figure, plot
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.utils.atomic import write_text

MODULE = "benchmarks.serving.adaptation"
WINDOW = 50  # steps of a row of the table
ADAPTED = 200  # steps after which trees have adapted
MAX_LOSS = 0.03  # of the speed without drafts, from there on: what `--check` allows
NEIGHBOURS = 20  # steps without drafts that a step is compared with
PROMPT_TOKENS = 64


class Step(NamedTuple):
    """A step of the engine."""

    seconds: float
    tokens: int  # emitted, over all requests
    is_drafted: bool  # whether a round went before it or followed it


@dataclass(frozen=True)
class Watch:
    """Continues all prompts at once, as the engine's first work but for a few tokens, and times each step."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    temperature: float

    def answer(self, llm: Any, job: Job, finished: Finished) -> dict[str, Any]:
        from vllm import SamplingParams

        core = llm.llm_engine.engine_core.engine_core
        observer = core.model_executor.driver_worker.worker.model_runner.speculator.observer
        if observer is None:
            raise ValueError("the trees of this engine do not adapt; its log says why")
        original, steps = core.step_fn, list[Step]()

        def step_fn() -> Any:
            follows_round, began = observer.rounds.is_drawn, time.perf_counter()
            outputs, is_executed = original()
            seconds = time.perf_counter() - began
            emitted = sum(len(out.new_token_ids) for each in outputs.values() for out in each.outputs)
            steps.append(Step(seconds, emitted, follows_round or observer.rounds.is_drawn))
            return outputs, is_executed

        sampling = [
            SamplingParams(temperature=self.temperature, seed=seed, max_tokens=self.max_tokens, ignore_eos=True)
            for seed in range(len(self.prompts))
        ]
        with patch.object(core, "step_fn", step_fn):
            llm.generate([{"prompt_token_ids": list(prompt)} for prompt in self.prompts], sampling, use_tqdm=False)
        finished(len(self.prompts))
        # The first step computes the prompts; towards the end requests have left, those with most drafts first.
        return {"steps": [step for step in steps[1:] if step.tokens >= len(self.prompts)]}


@dataclass(frozen=True)
class Options:
    """What is watched."""

    target: Path
    drafter: Path
    engines: int = 5
    requests: int = 1
    max_tokens: int = 500
    temperature: float = 1.0
    dtype: str = "bfloat16"
    check: bool = False
    out: Path = RESULTS

    def __post_init__(self) -> None:
        if self.engines < 1 or self.requests < 1:
            raise ValueError("engines and requests must be at least 1")
        if self.max_tokens < 2 * ADAPTED:
            raise ValueError(
                f"max_tokens must be at least {2 * ADAPTED}, so that steps are seen behind the {ADAPTED}th"
            )


def run(options: Options, console: Console) -> cli.Report:
    """The report that `show` prints.

    Raises:
        ChildError: An engine failed.
        ValueError: All steps of an engine had drafts, or there were too few.
    """
    from transformers import AutoTokenizer

    from benchmarks.models.cache import kv_cache_bytes
    from redrafter_vllm.bench.prompts import RANDOM, make_prompts

    length = 2 * PROMPT_TOKENS + options.max_tokens
    engine = {
        "dtype": options.dtype,
        "max_model_len": length,
        "max_num_seqs": options.requests,
        "kv_cache_memory_bytes": kv_cache_bytes(str(options.target), options.requests, length, options.dtype),
        "skip_tokenizer_init": True,
    }
    speculative = {"method": "redrafter", "model": str(options.drafter), "adaptive": True}
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    warm_up, *prompts = make_prompts(RANDOM, tokenizer, 1 + options.engines * options.requests, PROMPT_TOKENS).ids
    results = []
    for number in tqdm(range(options.engines), desc="engines", file=sys.stderr):
        own = prompts[number * options.requests :][: options.requests]
        job = Job(f"engine {number + 1}", str(options.target), speculative, engine, [warm_up], options.max_tokens)
        with EngineProcess(job, BUILD / "adaptation" / f"{number + 1}.log") as process:
            process.wait_until_ready()
            watched = process.take(Watch(own, options.max_tokens, options.temperature))
        results.append(windows([Step(*step) for step in watched["steps"]], options.requests))
    return {
        "config": {
            **{name: str(getattr(options, name)) for name in ("target", "drafter")},
            **{name: getattr(options, name) for name in ("requests", "max_tokens", "temperature", "dtype", "check")},
        },
        "results": results,
    }


def windows(steps: Sequence[Step], requests: int) -> dict[str, Any]:
    """Figures of one engine: of windows of `WINDOW` steps, and of all steps up to the `ADAPTED`th and behind it.

    Raises:
        ValueError: There are no steps behind it, or all have drafts.
    """
    if len(steps) <= ADAPTED:
        raise ValueError(f"there were {len(steps)} steps, and those behind the {ADAPTED}th are to be seen: more tokens")
    plain = undrafted_seconds(steps)

    def figures(begin: int, end: int) -> dict[str, float]:
        own = range(begin, min(end, len(steps)))
        emitted = sum(steps[i].tokens for i in own) / requests
        without = sum(steps[i].tokens / requests * plain[i] for i in own)
        return {
            "first_step": begin,
            "drafted": mean(steps[i].is_drafted for i in own),
            "tokens_per_step": emitted / len(own),
            "speed": without / sum(steps[i].seconds for i in own),
        }

    return {
        "windows": [figures(begin, begin + WINDOW) for begin in range(0, len(steps) - WINDOW + 1, WINDOW)],
        "at_first": figures(0, ADAPTED),
        "adapted": figures(ADAPTED, len(steps)),
    }


def undrafted_seconds(steps: Sequence[Step]) -> list[float]:
    """How long each step would have taken without drafts: the median of the nearest ones that had none.

    Raises:
        ValueError: There are none.
    """
    without = [i for i, step in enumerate(steps) if not step.is_drafted]
    if not without:
        raise ValueError("every step drafted: of this text drafts are accepted, so that there is nothing to adapt to")
    return [
        median(steps[near].seconds for near in sorted(without, key=lambda near: abs(near - i))[:NEIGHBOURS])
        for i in range(len(steps))
    ]


def grid(report: cli.Report) -> Grid:
    config, results = report["config"], report["results"]

    def row(name: str, figures: Sequence[dict[str, float]]) -> list[str]:
        speeds = [each["speed"] for each in figures]
        return [
            name,
            f"{mean(each['drafted'] for each in figures):.0%}",
            figure(mean(each["tokens_per_step"] for each in figures)),
            figure(median(speeds), ".3f"),
            f"{min(speeds):.3f} to {max(speeds):.3f}",
        ]

    number = min(len(each["windows"]) for each in results)
    rows = [
        row(f"{WINDOW * i} to {WINDOW * (i + 1) - 1}", [each["windows"][i] for each in results]) for i in range(number)
    ]
    rows += [
        row(f"up to {ADAPTED}", [each["at_first"] for each in results]),
        row(f"from {ADAPTED} on", [each["adapted"] for each in results]),
    ]
    title = (
        f"{len(results)} fresh engines, {config['requests']} at a time of random tokens, "
        f"temperature {config['temperature']:g}"
    )
    return Grid(title, ["steps", "with drafts", "tokens/step", "speed over steps without", "by engine"], rows)


def speed_when_adapted(report: cli.Report) -> float:
    """The median over engines."""
    return median(each["adapted"]["speed"] for each in report["results"])


def passed(report: cli.Report) -> bool:
    return not report["config"]["check"] or speed_when_adapted(report) >= 1 - MAX_LOSS


def show(report: cli.Report, console: Console) -> None:
    console.print(grid(report).rich())
    if not passed(report):
        console.print(f"{speed_when_adapted(report):.3f} is below {1 - MAX_LOSS:.2f}", style="red")


def store(report: cli.Report, file: Path) -> list[Path]:
    """Markdown and PNG beside the record."""
    markdown = file.with_suffix(".md")
    write_text(markdown, grid(report).markdown())
    return [markdown, *plot(file.with_suffix(".png"), lambda axes: draw(report, axes))]


def draw(report: cli.Report, axes: Any) -> None:
    for number, result in enumerate(report["results"], 1):
        middles = [window["first_step"] + WINDOW / 2 for window in result["windows"]]
        axes.plot(middles, [window["speed"] for window in result["windows"]], "o-", label=f"engine {number}")
    axes.axhline(1 - MAX_LOSS, color="gray", linestyle="--", label=f"{MAX_LOSS:.0%} less")
    axes.axvline(ADAPTED, color="gray", linestyle=":")
    axes.set(xlabel="step", ylabel="speed over steps without drafts", title=grid(report).title)
    axes.grid(alpha=0.3)
    axes.legend()


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "How soon trees adapt to text of which nothing can be drafted.")
    cli.add_target(parser)
    cli.add_drafter(parser)
    parser.add_argument("--engines", type=int, default=5, help="engines started, each with other prompts")
    parser.add_argument("--requests", type=int, default=1, help="requests at a time")
    parser.add_argument("--max-tokens", type=int, default=500, help="tokens of each request")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy, where answers repeat themselves")
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the target")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit with 1 if steps behind the {ADAPTED}th are more than {MAX_LOSS:.0%}% slower than without drafts",
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    try:
        args.drafter = resolve_drafter(args.drafter, str(args.target))
        return Options(**vars(args))
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, show, passed=passed, beside=store)


if __name__ == "__main__":
    sys.exit(main())
