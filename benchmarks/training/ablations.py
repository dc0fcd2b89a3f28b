# SPDX-License-Identifier: Apache-2.0
"""What each part of the training recipe is worth: `python -m benchmarks.training.ablations --target DIR`.

Each variant differs from our recipe only in what its name says; data, steps, drafter size and seeds are the same.
`published` is the published recipe: cross-entropy on the data set's own tokens, the same weight for all depths. In our
recipe half of the rows are the target's responses to pieces of the files that it was trained on; under `regenerated` it
is another share, responses with repetition, or, with `--answers`, responses to prompts that the target does not know.

The figure is the number of draft tokens accepted per verification step, greedy, on held-out prompts, simulated with
serving's beam search and tree. Finished trainings are kept in the folder `--work` and not repeated, so an interrupted
command can be continued, and `--seeds` can be divided among several processes.
"""

import hashlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import load_target
from benchmarks.record import RESULTS, store
from redrafter_training.config.recipe import RECIPES, Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.data.python_corpus import load_corpus, split
from redrafter_training.data.text_prompts import text_prompts
from redrafter_training.data.vocab_mapping import choose_draft_vocabulary, token_frequencies
from redrafter_training.data.windows import encode_files, mixed_batches
from redrafter_training.responses.examples import folder_responses
from redrafter_training.responses.own_texts import with_temperatures, write_texts
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.run.evaluation import held_out_texts
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_training.trainer.loop import build_drafter, distill
from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
from redrafter_vllm.utils.atomic import atomic_file
from redrafter_vllm.utils.paths import user_path

MODULE = "benchmarks.training.ablations"
OURS, PUBLISHED = "ours", "published"
DRAFTINGS = {"1x4": Drafting(1, 4, 4), "4x4": Drafting(4, 4, 16)}
RESPONSE_SEED = 0


@dataclass(frozen=True)
class Variant:
    """One change to our recipe."""

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    given_responses: bool = False  # uses the responses of `--answers`; omitted without them

    @property
    def file_stem(self) -> str:
        return f"{self.group}-{self.name}".replace(" ", "-").replace("/", "-")


DATA_LABELS = LossConfig(label_share=1.0, labels="data")
EQUAL_DEPTHS = {"depth_decay": 1.0}
VARIANTS = (
    Variant(OURS, "KL, target and drafts sharpened"),
    Variant(PUBLISHED, "cross-entropy on the data", {"loss": DATA_LABELS, **EQUAL_DEPTHS, "response_fraction": 0.0}),
    Variant("loss", "cross-entropy on data and responses", {"loss": DATA_LABELS}),
    Variant("loss", "cross-entropy on the target's top-1 tokens", {"loss": LossConfig(label_share=1.0)}),
    Variant("loss", "KL", {"loss": LossConfig()}),
    Variant("loss", "KL, target sharpened", {"loss": LossConfig(target_temperature=0.3)}),
    Variant("loss", "KL and cross-entropy on top-1 tokens, half each", {"loss": LossConfig(label_share=0.5)}),
    Variant("depth weights", "equal", EQUAL_DEPTHS),
    Variant("depth weights", "decay 0.6", {"depth_decay": 0.6}),
    Variant("regenerated", "none", {"response_fraction": 0.0}),
    Variant("regenerated", "three quarters", {"response_fraction": 0.75}),
    Variant("regenerated", "repetition kept", {"longest_repeat": 0}),
    Variant("regenerated", "unknown prompts", given_responses=True),
    Variant("draft vocabulary", "half", {"draft_vocab_size": 1 / 2}),
    Variant("draft vocabulary", "quarter", {"draft_vocab_size": 1 / 4}),
)


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    target: Path
    steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    responses: int = 1024
    prompts: int = 64
    new_tokens: int = 96
    groups: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    work: Path = Path("build/ablations")
    out: Path = RESULTS

    def config(self, variant: Variant, seed: int, vocab_size: int) -> DistillConfig:
        """Our recipe with the variant's change; its `draft_vocab_size` is a fraction of the target's vocabulary."""
        ours = RECIPES["standard"]
        changes = dict(variant.changes)
        if fraction := changes.get("draft_vocab_size"):
            changes["draft_vocab_size"] = round(vocab_size * fraction)
        folders = self.answers if variant.given_responses else ()
        longest_repeat = changes.pop("longest_repeat", ours.responses.longest_repeat)
        responses = replace(ours.responses, count=self.responses, folders=folders, longest_repeat=longest_repeat)
        return replace(ours, budget=Budget(self.steps), responses=responses, seed=seed, **changes)

    def file(self, variant: Variant, seed: int) -> Path:
        """File of one training's result; its name contains a digest of everything that the result depends on."""
        weights = (self.target / "model.safetensors").stat()
        inputs = [str(self.target), weights.st_size, weights.st_mtime_ns, self.prompts, self.new_tokens]
        inputs += [asdict(self.config(variant, seed, 1 << 16))]
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:8]
        return self.work / f"{variant.file_stem}-{seed}-{digest}.json"


class Bench:
    """What all trainings share: the target, its data, its responses and the texts to measure on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.target = load_target(options.target)
        self.tokenizer = tokenizer = AutoTokenizer.from_pretrained(options.target)
        self.bos = tokenizer.bos_token_id
        self.files = encode_files(split(load_corpus())[0], tokenizer)
        self.texts: list[tuple[Tensor, int]] = held_out_texts(
            self.target, tokenizer, prompts=options.prompts, new_tokens=options.new_tokens, seed=1
        )

    def responses(self, config: DistillConfig) -> list[Tensor]:
        """The target's responses that a training mixes in."""
        if not config.response_fraction:
            return []
        if config.responses.folders:
            return [text.tokens.long() for text in folder_responses(config.responses, self.tokenizer, config.window)]
        return self._stored_responses(config.responses)

    def _stored_responses(self, wanted: ResponseConfig) -> list[Tensor]:
        content = "-".join(part[:8] for part in target_fingerprint(str(self.options.target)).values())
        path = self.options.work / f"responses-{wanted.count}-{wanted.longest_repeat}-{content}.pt"
        if not path.is_file():
            front = () if self.bos is None else (self.bos,)
            prompts = text_prompts(self.files, wanted.count, self.tokenizer, front, wanted, RESPONSE_SEED)
            engine = TransformersEngine(self.target, wanted.batch_size, quiet=False)
            prompted = with_temperatures(prompts, wanted)
            window = RECIPES["standard"].window
            made = [text for text, _ in write_texts(engine, prompted, window, wanted.longest_repeat, RESPONSE_SEED)]
            with atomic_file(path) as temporary:
                torch.save(made, temporary)
        texts: list[Tensor] = torch.load(path, weights_only=True)
        return texts

    def train_and_measure(self, variant: Variant, seed: int) -> dict[str, Any]:
        """One training: its figures by number and length of beams."""
        config = self.options.config(variant, seed, self.target.vocab_size)
        draft_tokens, coverage = None, 1.0
        responses = self.responses(config)
        if config.draft_vocab_size is not None:
            frequencies = token_frequencies(self.files, responses, config.response_fraction, self.target.vocab_size)
            chosen = choose_draft_vocabulary(frequencies, config.draft_vocab_size)
            draft_tokens, coverage = chosen.tokens, chosen.coverage
        drafter = build_drafter(self.target, config, draft_tokens)
        batches = mixed_batches(self.files, responses, self.bos, config)
        history = distill(drafter, self.target, batches, config, quiet=True)
        return {
            "group": variant.group,
            "name": variant.name,
            "seed": seed,
            "steps": len(history),
            "coverage": coverage,
            "config": asdict(config),
            "held_out": {
                shape: asdict(measure(self.target, drafter, self.texts, drafting))
                for shape, drafting in DRAFTINGS.items()
            },
        }


def run(options: Options, variants: Sequence[Variant] = VARIANTS) -> list[dict[str, Any]]:
    """One result per variant and seed, those of earlier runs included."""
    wanted = [
        variant
        for variant in variants
        if (not options.groups or variant.group in options.groups) and (options.answers or not variant.given_responses)
    ]
    planned = [(variant, seed, options.file(variant, seed)) for seed in options.seeds for variant in wanted]
    missing = [job for job in planned if not job[2].is_file()]
    if missing:
        bench = Bench(options)
        for variant, seed, file in tqdm(missing, desc="trainings", unit="run"):
            if not file.is_file():  # another process may have finished it meanwhile
                store(file, bench.train_and_measure(variant, seed))
    return [json.loads(file.read_text()) for _, _, file in planned]


def summarise(results: Sequence[dict[str, Any]], shape: str) -> list[dict[str, Any]]:
    """Draft tokens accepted per step by variant: mean and deviation over seeds, and the gain over `published`."""
    accepted: dict[tuple[str, str], list[float]] = {}
    for result in results:
        key = (result["group"], result["name"])
        accepted.setdefault(key, []).append(result["held_out"][shape]["tokens_per_step"] - 1)
    means = {key: statistics.mean(values) for key, values in accepted.items()}
    published = next((mean for (group, _), mean in means.items() if group == PUBLISHED), None)
    return [
        {
            "group": key[0],
            "name": key[1],
            "accepted_per_step": means[key],
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
            "over_published": means[key] / published - 1 if published else None,
        }
        for key, values in accepted.items()
    ]


def print_table(rows: Sequence[dict[str, Any]], shape: str, console: Console) -> None:
    table = Table(title=f"draft tokens accepted per step, beams {shape}", title_justify="left")
    for column in ("group", "variant", "accepted", "± over seeds", "against published"):
        table.add_column(column)
    for row in rows:
        deviation, gain = row["standard_deviation"], row["over_published"]
        table.add_row(
            row["group"],
            row["name"],
            f"{row['accepted_per_step']:.3f}",
            "" if deviation is None else f"{deviation:.3f}",
            "" if gain is None else f"{gain:+.1%}",
        )
    console.print(table)


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "What each part of the training recipe is worth.")
    cli.add_target(parser)
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="trainings of each variant")
    parser.add_argument("--responses", type=int, default=1024, help="number of the target's responses, generated once")
    parser.add_argument(
        "--answers",
        nargs="+",
        default=[],
        metavar="DIR",
        help="responses to unknown prompts, from redrafter_training.respond",
    )
    cli.add_prompts(parser, prompts=64, new_tokens=96)
    parser.add_argument(
        "--groups", nargs="+", default=[], choices=list(dict.fromkeys(v.group for v in VARIANTS)), help="only these"
    )
    parser.add_argument("--work", type=user_path, default=Path("build/ablations"), help="folder for finished trainings")
    cli.add_out(parser)
    args = parser.parse_args(argv)
    lists = {name: tuple(getattr(args, name)) for name in ("seeds", "groups", "answers")}
    return Options(**{**vars(args), **lists})


def measure_all(options: Options, console: Console) -> cli.Report:
    results = run(options)
    return {"summary": {shape: summarise(results, shape) for shape in DRAFTINGS}, "results": results}


def print_tables(report: cli.Report, console: Console) -> None:
    for shape, rows in report["summary"].items():
        print_table(rows, shape, console)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, measure_all, print_tables)


if __name__ == "__main__":
    sys.exit(main())
