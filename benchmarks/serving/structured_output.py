# SPDX-License-Identifier: Apache-2.0
"""What chains instead of trees cost structured output, and what a mask for every node of a tree would cost the host.

`python -m benchmarks.serving.structured_output --target DIR`: plain vLLM continues held-out prompts under grammars;
then the steps that one beam and a tree would have taken along these texts are counted, and xgrammar's masks timed.
"""

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import cli
from benchmarks.assets import held_out_prompts, load_target
from benchmarks.record import RESULTS
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.model.drafter import Drafter

MODULE = "benchmarks.serving.structured_output"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "args": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 4},
        "size": {"type": "integer"},
    },
    "required": ["name", "args", "size"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "json": {"json": SCHEMA, "disable_any_whitespace": True},
    "regex": {"regex": r"def [a-z]{2,10}\(self(, [a-z]{2,10}){0,3}\):\n    return [a-z]{2,10}\n"},
    "choice": {"choice": ["return self.value\n", "return None\n", "raise ValueError(name)\n"]},
    "grammar": {"grammar": 'root ::= (name " = " name ("(" name ")")? "\\n"){3}\nname ::= [a-z] [a-z_]* [a-z]'},
}
JSON_TEXT = b'{"name": "read_line", "args": ["self", "size", "limit of it"], "size": 17}'


@dataclass(frozen=True)
class Options:
    """What is measured."""

    target: Path
    drafter: Path
    prompts: int = 24
    new_tokens: int = 64
    temperature: float = 0.0
    vocabulary: int = 128_256
    out: Path = RESULTS

    @property
    def draftings(self) -> dict[str, Drafting]:
        return {"chain": Drafting(1, 4, 4), "tree": Drafting(4, 4, 16)}


def constrained_texts(options: Options, grammar: dict[str, Any]) -> list[tuple[torch.Tensor, int]]:
    """Plain vLLM's completions under one grammar: prompt and completion in one tensor, and the prompt's length."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = engine(options)
    texts = held_out_prompts(options.prompts, seed=1, max_chars=600)
    sampling = [
        SamplingParams(
            temperature=options.temperature,
            seed=index,
            max_tokens=options.new_tokens,
            structured_outputs=StructuredOutputsParams(**grammar),
        )
        for index in range(len(texts))
    ]
    outputs = llm.generate(texts, sampling, use_tqdm=False)
    return [
        (torch.tensor([*out.prompt_token_ids, *out.outputs[0].token_ids]), len(out.prompt_token_ids)) for out in outputs
    ]


_ENGINES: dict[Path, Any] = {}


def engine(options: Options) -> Any:
    """Plain vLLM on the target, started at the first call."""
    from vllm import LLM

    if options.target not in _ENGINES:
        _ENGINES[options.target] = LLM(
            str(options.target),
            dtype="float32",
            max_model_len=512,
            max_num_seqs=8,
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 26,
        )
    return _ENGINES[options.target]


def mask_times(vocabulary: int) -> dict[str, float]:
    """Microseconds of xgrammar's mask at each byte of `JSON_TEXT`, for a vocabulary of random short words."""
    import xgrammar

    rng = random.Random(0)
    alphabet = b'abcdefghijklmnopqrstuvwxyz_ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789{}[]":,.-\n'
    words = dict.fromkeys(bytes([byte]) for byte in range(256))
    while len(words) < vocabulary:
        words[bytes(rng.choices(alphabet, k=rng.randint(2, 9)))] = None
    info = xgrammar.TokenizerInfo(list(words), vocab_size=vocabulary, stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)
    matcher = xgrammar.GrammarMatcher(compiled)
    mask, spent = xgrammar.allocate_token_bitmask(1, vocabulary), []
    for byte in JSON_TEXT:
        started = time.perf_counter()
        matcher.fill_next_token_bitmask(mask)
        spent.append(1e6 * (time.perf_counter() - started))
        if not matcher.accept_token(byte):
            raise ValueError(f"{JSON_TEXT!r} does not match its own schema")
    return {"mean": mean(spent), "median": median(spent), "greatest": max(spent)}


def run(options: Options, console: Console) -> cli.Report:
    target = load_target(options.target)
    drafter = Drafter.from_pretrained(options.drafter)
    rows = []
    for name, grammar in GRAMMARS.items():
        texts = constrained_texts(options, grammar)
        found = {kind: measure(target, drafter, texts, shape) for kind, shape in options.draftings.items()}
        rows.append({"grammar": name} | {kind: asdict(acceptance) for kind, acceptance in found.items()})
    return {
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "temperature": options.temperature,
        "results": rows,
        "mask_microseconds": {"vocabulary": options.vocabulary} | mask_times(options.vocabulary),
    }


def print_table(report: cli.Report, console: Console) -> None:
    table = Table(title="tokens per step under grammars", title_justify="left")
    for column in ("grammar", "tokens", "chain", "tree"):
        table.add_column(column)
    for row in report["results"]:
        figures = [f"{row[kind]['tokens_per_step']:.2f}" for kind in ("chain", "tree")]
        table.add_row(row["grammar"], str(row["chain"]["tokens"]), *figures)
    console.print(table)
    masks = report["mask_microseconds"]
    console.print(
        f"one mask, {masks['vocabulary']} tokens: {masks['mean']:.0f} µs in the mean, {masks['median']:.0f} in the "
        f"median, {masks['greatest']:.0f} at most"
    )


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(
        MODULE, "What chains instead of trees cost structured output, and what masks for trees would cost the host."
    )
    cli.add_target(parser)
    cli.add_drafter(parser)
    cli.add_prompts(parser, prompts=24, new_tokens=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument(
        "--vocabulary", type=int, default=128_256, help="words of the vocabulary that masks are timed on"
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    drafter = resolve_drafter(args.drafter, str(args.target))
    return Options(args.target, drafter, args.prompts, args.new_tokens, args.temperature, args.vocabulary, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return cli.run_benchmark(MODULE, argv, parse_args, run, print_table)


if __name__ == "__main__":
    sys.exit(main())
