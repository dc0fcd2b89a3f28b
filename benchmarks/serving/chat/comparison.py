# SPDX-License-Identifier: Apache-2.0
"""All methods on the same questions: an engine each, which runs the first and second turns at every temperature."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from benchmarks import cli
from benchmarks.serving.chat.methods import Method, Outcome, Serving
from benchmarks.serving.chat.options import Options
from benchmarks.serving.chat.questions import Asked, Question, Reader, ask, chosen_prompts, group_names, passes_of
from benchmarks.serving.chat.simulated import Text, Walker
from redrafter_vllm.bench.acceptance import acceptance_of_steps, tokens_per_step
from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.compare import compare
from redrafter_vllm.bench.engine import EngineProcess
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.trees import tree_name
from redrafter_vllm.prompt_sets import EvaluationPrompt

AGREEMENT = 0.03  # largest relative difference of served and simulated tokens per step

Outcomes = dict[float, Outcome]  # by temperature


def run(options: Options) -> cli.Report:
    """The report that `benchmarks.serving.chat.report` shows."""
    comparison = Comparison(options)
    asked = comparison.ask_plain()
    for method in comparison.peers:
        comparison.measure(method)
    for method in comparison.ours:
        comparison.measure(method)
    rows = comparison.rows()
    return {
        "config": described(options),
        "groups": group_names(asked.questions),
        "requests": {
            group: sum(group in question.groups for question in asked.questions)
            for group in group_names(asked.questions)
        },
        "left_out": asked.left_out,
        "runners": comparison.runners,
        "failed": comparison.failed,
        "greedy_alone": comparison.greedy_alone,
        "results": rows,
        "agreement": agreement(rows, [tree_name(tree) for tree in options.serving.trees if not tree.adaptive]),
    }


def described(options: Options) -> dict[str, Any]:
    """The options, for a record."""
    serving = options.serving
    return {
        **{name: str(getattr(serving, name)) for name in ("target", "drafter")},
        **{name: getattr(serving, name) for name in ("window", "batch", "dtype", "eager", "lookup")},
        "trees": [asdict(tree) for tree in serving.trees],
        **{name: getattr(options, name) for name in ("prompts", "categories", "questions", "max_tokens", "check")},
        "temperatures": options.temperatures,
    }


class Comparison:
    """Outcomes by method; a method that fails is kept as an error. An error of plain vLLM is raised."""

    def __init__(self, options: Options) -> None:
        self.options, self.serving = options, options.serving
        self.prompts: list[EvaluationPrompt] = chosen_prompts(options.prompts, options.categories, options.questions)
        self.reader = Reader.of(self.serving.target, options.chat_template)
        self.plain = self.serving.plain()
        self.peers = self.serving.peers(options.peers)
        self.ours = self.serving.redrafters()
        self.asked: Asked
        self.outcomes: dict[str, Outcomes] = {}
        self.runners: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.greedy_alone: dict[str, str] = {}  # why, of methods that were asked at no temperature

    def ask_plain(self) -> Asked:
        """Start plain vLLM, ask all turns greedily, and run them at the other temperatures."""
        turns = sum(len(prompt.turns) for prompt in self.prompts)
        options = self.options
        sampled = [temperature for temperature in options.temperatures if temperature]
        with started(
            self.serving, self.plain, turns * (1 + len(sampled)), options.max_tokens, self.warm_up()
        ) as engine:
            self.runners[self.plain.name] = engine.runner
            self.asked = ask(
                engine.process,
                self.reader,
                self.prompts,
                max_tokens=options.max_tokens,
                window=self.serving.window,
                finished=engine.finished,
            )
            self.outcomes[self.plain.name] = {
                temperature: self._take(engine, temperature) if temperature else Outcome.of(self.asked.passes)
                for temperature in options.temperatures
            }
        return self.asked

    def warm_up(self) -> list[list[int]]:
        """Prompts that warm the engines up."""
        return self.reader.warm_up([prompt.turns[0] for prompt in self.prompts])

    def measure(self, method: Method) -> None:
        """Run a method at every temperature, on one engine unless it learns from what it has answered."""
        if method.missing is not None:
            self.failed[method.name] = method.missing
            return
        temperatures = [each for each in self.options.temperatures if not each or not method.greedy_alone]
        if len(temperatures) < len(self.options.temperatures):
            self.greedy_alone[method.name] = str(method.greedy_alone)
        if not temperatures:
            return
        try:
            found: Outcomes = {}
            for group in [[each] for each in temperatures] if method.learns else [temperatures]:
                number = len(self.asked.questions) * len(group)
                with started(self.serving, method, number, self.options.max_tokens, self.warm_up()) as engine:
                    self.runners[method.name] = engine.runner
                    found |= {temperature: self._take(engine, temperature) for temperature in group}
            self.outcomes[method.name] = found
        except ChildError as error:
            self.failed[method.name] = str(error)

    def _take(self, engine: "Started", temperature: float) -> Outcome:
        passes = passes_of(self.asked.questions, self.options.max_tokens, temperature, self.reader.end_tokens)
        return Outcome.of([engine.process.take(each, engine.finished) for each in passes])

    def rows(self) -> list[dict[str, Any]]:
        """Figures by temperature and method; each of ReDrafter's fixed trees simulated, then served."""
        walked = self._walked()
        depth = max(tree.max_depth for tree in self.serving.trees)
        found = []
        for temperature in self.options.temperatures:
            for method in (self.plain, *self.peers, *self.ours):
                outcome = self.outcomes.get(method.name, {}).get(temperature)
                if outcome is None:
                    continue
                common = {"temperature": temperature, "tree": method.tree and tree_name(method.tree)}
                if method.tree is not None and not method.tree.adaptive:
                    steps = walked[temperature][method.tree]
                    figures = figures_of(self.asked.questions, steps, depth)
                    name = f"ReDrafter, simulated, {tree_name(method.tree)}"
                    found.append({**common, "method": name, "simulated": True, **figures, "tokens_per_second": None})
                figures = figures_of(self.asked.questions, outcome.steps, depth)
                same = compare(self.outcomes[self.plain.name][temperature].tokens, outcome.tokens)
                figures["same_requests"] = same.same_requests
                figures["tokens_per_second"] = outcome.tokens_per_second
                found.append({**common, "method": method.name, "simulated": False, **figures})
        return found

    def _walked(self) -> dict[float, dict[DraftingConfig, list[list[int]]]]:
        """Simulated steps along the texts that the same tree has emitted when serving."""
        served = [method for method in self.ours if method.name in self.outcomes]
        if not served:
            return {}
        serving = self.serving
        walker = Walker.load(serving.target, serving.drafter, serving.dtype, serving.device)
        return {
            temperature: walker.steps(
                {
                    method.tree: texts_of(self.asked.questions, self.outcomes[method.name][temperature])
                    for method in served
                    if method.tree is not None and not method.tree.adaptive
                },
                f"simulated, temperature {temperature:g}",
            )
            for temperature in self.options.temperatures
        }


class Started:
    """A running engine with its progress bar."""

    def __init__(self, process: EngineProcess, runner: str, bar: tqdm) -> None:
        self.process, self.runner, self.finished = process, runner, bar.update


@contextmanager
def started(
    serving: Serving, method: Method, requests: int, max_tokens: int, warm_up: list[list[int]]
) -> Iterator[Started]:
    """The engine of a method, with a bar of its requests; it has ended when the block is left.

    Raises:
        ChildError: The engine failed.
    """
    job = serving.job(method, warm_up, max_tokens)
    bar = tqdm(total=requests, desc=f"{job.name}: starting", unit="request")
    with bar, EngineProcess(job, serving.log(method)) as process:
        runner = process.wait_until_ready()
        bar.set_description(job.name)
        yield Started(process, runner, bar)


def texts_of(questions: Sequence[Question], outcome: Outcome) -> list[Text]:
    """Prompts and responses."""
    return [(question.prompt, tuple(said)) for question, said in zip(questions, outcome.tokens, strict=True)]


def figures_of(questions: Sequence[Question], steps: Sequence[Sequence[int]], depth: int) -> dict[str, Any]:
    """Tokens per step by group (None where no response has two tokens), and acceptance by depth over all."""
    members = {
        group: [own for question, own in zip(questions, steps, strict=True) if group in question.groups]
        for group in group_names(questions)
    }
    return {
        "tokens_per_step": {
            group: tokens_per_step(own) if any(len(request) > 1 for request in own) else None
            for group, own in members.items()
        },
        "acceptance_by_depth": acceptance_of_steps(steps, depth),
        "steps": sum(len(request) - 1 for request in steps),
        "tokens": sum(map(sum, steps)),
    }


def agreement(rows: Sequence[dict[str, Any]], trees: Sequence[str]) -> list[dict[str, Any]]:
    """For every tree and temperature, how far the simulated tokens per step are from the served ones."""
    found = []
    for tree in trees:
        for temperature in dict.fromkeys(row["temperature"] for row in rows):
            pair = {
                row["simulated"]: row["tokens_per_step"]["all"]
                for row in rows
                if row["tree"] == tree and row["temperature"] == temperature
            }
            if len(pair) == 2 and None not in pair.values():
                difference = pair[True] / pair[False] - 1
                found.append({"tree": tree, "temperature": temperature, "difference": difference})
    return found


def agreed(report: cli.Report) -> bool:
    """Whether every tree was served, and greedily agrees with its simulation within `AGREEMENT`."""
    greedy = {row["tree"]: row["difference"] for row in report["agreement"] if row["temperature"] == 0}
    trees = report["config"]["trees"]
    return len(greedy) == len(trees) and all(abs(difference) <= AGREEMENT for difference in greedy.values())
