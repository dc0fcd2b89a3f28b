# SPDX-License-Identifier: Apache-2.0
"""Train a drafter for a frozen target: `python -m training.distill --target DIR`.

The text is the Python standard library's (or another folder of Python files), half of it continued by the target
itself. The drafter goes to `<target>/redrafter`, where serving looks for it, unless `--out` says otherwise.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from redrafter_vllm.drafter import Drafter
from training.config import RECIPES, DistillConfig
from training.corpus import load_corpus, split
from training.data import Windows, encode_files, mixed_batches, text_batches
from training.draft_vocabulary import DraftVocabulary, choose_draft_vocabulary, token_frequencies
from training.evaluate import Drafting, held_out_texts, measure
from training.frozen_target import FrozenTarget
from training.generate import make_responses
from training.head_loss import LossConfig
from training.loop import StepFigures, build_drafter, distill
from training.schedule import Budget


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    target: str
    out: Path
    corpus: Path | None
    recipe: str
    device: str
    evaluate: bool
    config: DistillConfig


@dataclass(frozen=True)
class TrainingData:
    """Corpus text and the target's own responses to it."""

    files: list[Tensor]
    responses: Windows | None

    def batches(self, bos: int | None, config: DistillConfig) -> Iterator[Windows]:
        """Endless batches of both."""
        rows = config.batch_size - round(config.batch_size * config.response_fraction)
        text = text_batches(self.files, config.window, bos, max(rows, 1), config.seed)
        return mixed_batches(text, self.responses, config.batch_size, config.response_fraction, config.seed)

    def draft_vocabulary(self, config: DistillConfig, vocab_size: int) -> DraftVocabulary | None:
        """The draft vocabulary that the configuration asks for, if any."""
        if config.draft_vocab_size is None:
            return None
        frequencies = token_frequencies(self.files, self.responses, config.response_fraction, vocab_size)
        return choose_draft_vocabulary(frequencies, config.draft_vocab_size)


def load_data(target: FrozenTarget, tokenizer: AutoTokenizer, job: Job) -> TrainingData:
    """Encodes the corpus and has the target answer to it, as far as the configuration asks for answers."""
    config = job.config
    files = encode_files(split(load_corpus(job.corpus))[0], tokenizer)
    responses = None
    if config.response_fraction:
        responses = make_responses(target, files, config.window, tokenizer.bos_token_id, config.responses, config.seed)
    return TrainingData(files, responses)


def tail_means(history: list[StepFigures], count: int = 50) -> dict[str, object]:
    """Means over the last steps, which one batch alone would leave noisy."""
    tail = history[-count:]
    return {
        "loss": sum(f.loss for f in tail) / len(tail),
        "loss_by_depth": [sum(column) / len(tail) for column in zip(*(f.loss_by_depth for f in tail), strict=True)],
        "agreement_by_depth": [sum(column) / len(tail) for column in zip(*(f.agreement for f in tail), strict=True)],
    }


def held_out_figures(target: FrozenTarget, drafter: Drafter, tokenizer: AutoTokenizer, job: Job) -> dict[str, object]:
    """Greedy tokens per step on held-out prompts, by number of beams."""
    texts = held_out_texts(target, tokenizer, prompts=32, new_tokens=96, seed=1, corpus=job.corpus)
    length = job.config.beam_length
    shapes = [Drafting(width, length, width * length) for width in (1, 4)]
    return {f"{s.beam_width}x{s.beam_length}": asdict(measure(target, drafter, texts, s)) for s in shapes}


def run(job: Job) -> dict[str, object]:
    """Train, store the drafter in bfloat16 with its `training.json`, return the latter's content."""
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(job.target)
    model = AutoModelForCausalLM.from_pretrained(job.target, dtype=torch.float32)
    target = FrozenTarget(model.to(job.device))
    data = load_data(target, tokenizer, job)
    vocabulary = data.draft_vocabulary(job.config, target.vocab_size)
    drafter = build_drafter(target, job.config, None if vocabulary is None else vocabulary.tokens)
    history = distill(drafter, target, data.batches(tokenizer.bos_token_id, job.config), job.config)
    drafter.to(torch.bfloat16).save_pretrained(job.out)
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")}
    report: dict[str, object] = {
        "command": " ".join(["python -m training.distill", *sys.argv[1:]]),
        "recipe": job.recipe,
        "versions": versions,
        "config": asdict(job.config),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "steps": len(history),
        "training": tail_means(history),
        "seconds": round(time.monotonic() - started),
    }
    if vocabulary is not None:
        report["draft_vocabulary_coverage"] = vocabulary.coverage
    if job.evaluate:
        report["held_out"] = held_out_figures(target, drafter.float(), tokenizer, job)
    (job.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def parse_args(argv: list[str] | None = None) -> Job:
    parser = argparse.ArgumentParser(prog="python -m training.distill", description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="folder or hub name of the frozen target")
    parser.add_argument("--out", type=Path, help="where the drafter goes (default: <target>/redrafter)")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="short", help="short: under 2 min on 2 cores")
    parser.add_argument("--corpus", type=Path, help="folder of Python files (default: the standard library)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-evaluate", dest="evaluate", action="store_false", help="skip the held-out figures")
    parser.add_argument("--max-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--max-seconds", type=float, help="instead of the recipe's; the schedule still runs to its end")
    for name, kind in (
        ("beam_length", int),
        ("exit_dim", int),
        ("num_draft_layers", int),
        ("draft_vocab_size", int),
        ("window", int),
        ("batch_size", int),
        ("response_fraction", float),
        ("depth_decay", float),
        ("learning_rate", float),
        ("seed", int),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the recipe's")
    parser.add_argument("--label-share", type=float, help="cross-entropy's share of the loss; the rest is divergence")
    parser.add_argument("--labels", choices=("target", "data"), help="the target's favourite tokens, or the text's")
    parser.add_argument("--temperature", type=float, help="of the divergence")
    parser.add_argument("--responses", type=int, help="how many texts the target writes, instead of the recipe's")
    args = parser.parse_args(argv)
    config = RECIPES[args.recipe]
    given = given_fields(args, config, "budget", "responses", "loss")
    loss = replace(config.loss, **given_fields(args, config.loss))
    budget = Budget(args.max_steps or config.budget.max_steps, args.max_seconds or config.budget.max_seconds)
    count = config.responses.count if args.responses is None else args.responses
    config = replace(config, budget=budget, responses=replace(config.responses, count=count), loss=loss, **given)
    out = args.out or Path(args.target) / "redrafter"
    return Job(args.target, out, args.corpus, args.recipe, args.device, args.evaluate, config)


def given_fields(args: argparse.Namespace, config: DistillConfig | LossConfig, *without: str) -> dict[str, Any]:
    """What the command line sets of the fields of `config`."""
    names = {f.name for f in fields(config)} - set(without)
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def main(argv: list[str] | None = None) -> None:
    report = run(parse_args(argv))
    print(json.dumps({key: report[key] for key in ("steps", "training", "seconds") if key in report}))
    if "held_out" in report:
        print(json.dumps(report["held_out"]))


if __name__ == "__main__":
    main()
