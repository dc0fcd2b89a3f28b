# SPDX-License-Identifier: Apache-2.0
"""Our recipe against the published one, for a chat model and human-written answers.

`python -m benchmarks.training.chat_recipes --target DIR --data FILE --responses DIR --prompts mt-bench`. DIR of
`--responses` is what `redrafter_training.respond` has made of the same file, so that all recipes have the same prompts,
steps, rows and learning rate, and drafters of the same size. `ours` is the recipe of the committed drafter for
SmolLM2-135M-Instruct, on the target's answers. `published` is cross-entropy on the data's own answers, with the same
weight for all depths and an output layer that is trained; with the target's head in its place it differs from ours in
text and loss alone.

The figure is the number of draft tokens accepted per verification step, greedy, simulated as in
`redrafter_training.evaluate`: the target's answers are generated once. Finished trainings are kept in `--work`, so an
interrupted command can be continued, and `--seeds` and `--recipes` can be divided among several processes. The hidden
states of a recipe's texts are computed once for all of `--all-seeds`.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import load_target
from benchmarks.record import RESULTS, store
from benchmarks.serving.texts import Prompts
from benchmarks.training.ablations import DATA_LABELS, DRAFTINGS, EQUAL_DEPTHS, OURS, PUBLISHED, print_table, summarise
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import RECIPES, Budget, DistillConfig
from redrafter_training.data.vocab_mapping import choose_draft_vocabulary
from redrafter_training.data.windows import Repeated, Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.hidden_states.target import CachedTarget, open_cached_target
from redrafter_training.run.evaluation import EXPORT_DTYPE
from redrafter_training.run.feed import Feed, open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.run.training import deferred_target
from redrafter_training.target.model import TargetModel
from redrafter_training.target.properties import load_config
from redrafter_training.trainer.acceptance import CountedSteps, accepted_everywhere, count_steps
from redrafter_training.trainer.acceptance import summarise as acceptance
from redrafter_training.trainer.loop import Hooks, build_drafter, distill
from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.prompt_sets import SETS, load_prompts
from redrafter_vllm.utils.atomic import atomic_file
from redrafter_vllm.utils.paths import user_path

MODULE = "benchmarks.training.chat_recipes"
CHECKPOINT_EVERY = 125
MAX_PROMPT = 8192  # tokens of a prompt that is measured on, with its answer
ROWS_OF_STATES = 8  # texts whose hidden states are computed at once
TAIL = 50  # steps whose mean loss is recorded
AMOUNTS = ("training", "held_out", "training_tokens", "learned_tokens", "truncated")


@dataclass(frozen=True)
class Recipe:
    """What a drafter is trained on and how, as a change to ours."""

    group: str
    name: str
    data_answers: bool = False  # instead of the target's
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in options and files."""
        return re.sub(r"\W+", "-", self.group.replace("'", ""))


PUBLISHED_LOSS: dict[str, Any] = {"loss": DATA_LABELS, **EQUAL_DEPTHS}
ALL_RECIPES = (
    Recipe(OURS, "KL and hidden states, the target's answers"),
    Recipe(PUBLISHED, "cross-entropy, the data's answers", True, PUBLISHED_LOSS | {"target_head": False}),
    Recipe("published, target's head", "cross-entropy, the data's answers", True, PUBLISHED_LOSS),
)
BY_KEY = {recipe.key: recipe for recipe in ALL_RECIPES}


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    target: Path
    data: Path
    responses: Path
    prompts: tuple[str, ...] = ("mt-bench",)
    questions: int = 3
    new_tokens: int = 256
    steps: int = 750
    seeds: tuple[int, ...] = (0, 1, 2)
    all_seeds: tuple[int, ...] = (0, 1, 2)
    recipes: tuple[str, ...] = tuple(BY_KEY)
    window: int = 1024
    batch_size: int = 1
    draft_vocab_size: int = 8192
    learning_rate: float = 0.003
    work: Path = Path("build/chat-recipes")
    out: Path = RESULTS

    def config(self, recipe: Recipe, seed: int, hidden_size: int) -> DistillConfig:
        """Ours is that of redrafter_training/recipes/smollm2-135m-instruct.yaml, with the options' sizes."""
        standard = RECIPES["standard"]
        ours = replace(
            standard,
            budget=Budget(self.steps),
            window=self.window,
            batch_size=self.batch_size,
            draft_vocab_size=self.draft_vocab_size,
            learning_rate=self.learning_rate,
            exit_dim=hidden_size,
            target_head=True,
            loss=replace(standard.loss, hidden_weight=30.0),
            num_draft_layers=4,
            chunk=256,
            fixed_windows=True,
            response_fraction=0.0,  # the texts of a recipe are its data, whoever wrote them
            seed=seed,
        )
        # Without `target_head` the loss has no distance of hidden states: they are replaced together.
        return replace(ours, **recipe.changes)

    def measured(self, source: str) -> Prompts:
        """What is asked of a set: of those that are part of the package the first of each category, of a file all."""
        return Prompts(source, self.new_tokens, self.questions if source in SETS else 0)


class Bench:
    """What all trainings share: the target, the texts to train on with their hidden states, and those to measure on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.target)
        self.content = target_fingerprint(str(options.target))
        self.hidden_size = int(load_config(str(options.target)).get_text_config().hidden_size)
        self._cached: dict[bool, CachedTarget] = {}

    @cached_property
    def target(self) -> TargetModel:
        """In float32, to measure with; trainings read its hidden states."""
        return load_target(self.options.target)

    def job(self, recipe: Recipe) -> Job:
        kind = "data" if recipe.data_answers else "responses"
        folder = self.options.work / f"hidden-states-{kind}"
        data = self.options.data if recipe.data_answers else self.options.responses
        return Job(str(self.options.target), str(data), out=self.options.work / kind, hidden_cache=folder)

    def config(self, recipe: Recipe, seed: int) -> DistillConfig:
        return self.options.config(recipe, seed, self.hidden_size)

    def feed(self, recipe: Recipe, seed: int) -> Feed:
        job, config = self.job(recipe), self.config(recipe, seed)
        context = LocalContext()
        settings = FeedSettings.of(job, config, target=self.content)
        return open_feed(settings, deferred_target(job, config, context), self.tokenizer, context)

    def states(self, recipe: Recipe) -> CachedTarget:
        """The target as the hidden states of the texts that the recipe shows with any of the seeds."""
        if recipe.data_answers not in self._cached:
            feeds = [self.feed(recipe, seed) for seed in self.options.all_seeds]
            steps = self.options.steps

            def every() -> Iterator[Windows]:
                return chain.from_iterable(islice(feed.batches, steps) for feed in feeds)

            job, context = self.job(recipe), LocalContext()
            config = replace(self.config(recipe, 0), budget=Budget(steps * len(feeds)), batch_size=ROWS_OF_STATES)
            target = deferred_target(job, config, context)
            held_out = feeds[0].held_out
            cached = open_cached_target(job, config, context, target, Repeated(every), held_out)
            self._cached[recipe.data_answers] = cached
        return self._cached[recipe.data_answers]

    def answers(self, source: str) -> list[tuple[Tensor, int, Tensor]]:
        """The target's answers to a set of prompts: token ids [n], the prompt's length, and hidden states [n, H]."""
        wanted = self.options.measured(source)
        asked = json.dumps([[prompt.turns for prompt in load_prompts(source)], wanted.described, self.content])
        path = self.options.work / f"answers-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.pt"
        if not path.is_file():
            texts = wanted.texts(self.target, self.tokenizer, window=MAX_PROMPT)
            made = [(text, start, self.target.hidden(text[None])[0]) for text, start in texts]
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                torch.save(made, temporary)
        answered: list[tuple[Tensor, int, Tensor]] = torch.load(path, weights_only=True)
        return answered

    def file(self, recipe: Recipe, seed: int) -> Path:
        """File of one training's result; its name has a digest of what the result depends on."""
        own = self.options
        inputs = [self.content, asdict(self.config(recipe, seed)), str(own.data), str(own.responses)]
        inputs += [asdict(own.measured(source)) for source in own.prompts]
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:8]
        return own.work / f"{recipe.key}-{seed}-{digest}.json"

    def train_and_measure(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        config, feed, states = self.config(recipe, seed), self.feed(recipe, seed), self.states(recipe)
        chosen = choose_draft_vocabulary(feed.frequencies(states.vocab_size), self.options.draft_vocab_size)
        drafter = build_drafter(states, config, chosen.tokens)
        folder = self.options.work / f"{recipe.key}-{seed}.run"
        hooks = Hooks(checkpoint_every=CHECKPOINT_EVERY, identity={"config": asdict(config)})
        started = time.monotonic()
        history = distill(drafter, states, feed.batches, config, context=LocalContext(folder.resolve()), hooks=hooks)
        seconds = time.monotonic() - started
        return {
            "group": recipe.group,
            "name": recipe.name,
            "seed": seed,
            "steps": len(history),
            "epochs": len(history) / feed.steps_per_epoch,
            "seconds": round(seconds),
            "loss": sum(step.loss for step in history[-TAIL:]) / len(history[-TAIL:]),
            "parameters": sum(p.numel() for p in drafter.parameters()),
            "coverage": chosen.coverage,
            "data": {key: feed.facts[key] for key in AMOUNTS},
            "config": asdict(config),
            "held_out": {source: self.measure(drafter, source) for source in self.options.prompts},
        }

    @torch.inference_mode()
    def measure(self, drafter: Drafter, source: str) -> dict[str, Any]:
        """Acceptance by shape along the target's answers, by the drafter in the precision of its export."""
        rounded = drafter.to(EXPORT_DTYPE).to(torch.float32)
        found = {}
        for shape, drafting in DRAFTINGS.items():
            steps = []
            for text, start, hidden in self.answers(source):
                accepted = accepted_everywhere(self.target, rounded, hidden, text, start, drafting)
                steps.append(CountedSteps(count_steps(accepted.tolist()), len(text) - start - 1))
            found[shape] = asdict(acceptance(steps, drafting))
        return found


def run(options: Options) -> list[dict[str, Any]]:
    """One result per recipe and seed, those of earlier runs included."""
    bench = Bench(options)
    planned = [(BY_KEY[key], seed) for seed in options.seeds for key in options.recipes]
    for recipe, seed in planned:
        if not bench.file(recipe, seed).is_file():
            store(bench.file(recipe, seed), bench.train_and_measure(recipe, seed))
    return [json.loads(bench.file(recipe, seed).read_text()) for recipe, seed in planned]


def of_source(results: Sequence[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """The results with the figures of one set of prompts alone."""
    return [result | {"held_out": result["held_out"][source]} for result in results]


def measure_all(options: Options, console: Console) -> cli.Report:
    results = run(options)
    summary = {
        source: {shape: summarise(of_source(results, source), shape) for shape in DRAFTINGS}
        for source in options.prompts
    }
    return {"summary": summary, "results": results}


def print_tables(report: cli.Report, console: Console) -> None:
    for source, shapes in report["summary"].items():
        for shape, rows in shapes.items():
            print_table(rows, f"{shape}, {source}", console)


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Our recipe against the published one, for a chat model.")
    cli.add_target(parser)
    parser.add_argument("--data", type=user_path, required=True, help="file of conversations with answers by humans")
    parser.add_argument("--responses", type=user_path, required=True, help="the target's answers to the same prompts")
    parser.add_argument("--prompts", nargs="+", default=["mt-bench"], help="what is measured on: sets, or files")
    parser.add_argument("--questions", type=int, default=3, help="the first N of each category of a set; 0: all")
    parser.add_argument("--new-tokens", type=int, default=256, help="tokens that each prompt is answered by, at most")
    parser.add_argument("--steps", type=int, default=750, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="trainings of each recipe")
    parser.add_argument("--all-seeds", type=int, nargs="+", default=[0, 1, 2], help="of all processes together")
    parser.add_argument("--recipes", nargs="+", default=list(BY_KEY), choices=list(BY_KEY), help="only these")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--batch-size", type=int, default=1, help="rows of a step")
    parser.add_argument("--draft-vocab-size", type=int, default=8192, help="counted on each recipe's texts")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="at its peak")
    parser.add_argument("--work", type=user_path, default=Path("build/chat-recipes"), help="folder for trainings")
    cli.add_out(parser)
    args = parser.parse_args(argv)
    lists = {name: tuple(getattr(args, name)) for name in ("prompts", "seeds", "all_seeds", "recipes")}
    return Options(**{**vars(args), **lists})


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, measure_all, print_tables)


if __name__ == "__main__":
    sys.exit(main())
