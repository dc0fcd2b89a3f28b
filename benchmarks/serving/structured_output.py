# SPDX-License-Identifier: Apache-2.0
"""What chains instead of trees cost structured output, and what a mask for every node of a tree would cost the host.

`python -m benchmarks.serving.structured_output --target DIR`: plain vLLM continues prompts under grammars; then the
steps that one beam and a tree would have taken along these texts are counted, and xgrammar's masks timed. Source files
are continued in forms of source code. Of chat prompts the first turns are used, each with a request for the form.
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
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import held_out_prompts, load_target, tokenized
from benchmarks.engines.offline import MAX_MODEL_LEN
from benchmarks.record import RESULTS
from benchmarks.serving.chat.questions import Reader, chosen_prompts
from benchmarks.serving.texts import SEED, Prompts, add_prompts, parsed_prompts
from redrafter_training.data.conversations import Turn
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
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 160},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 24}, "maxItems": 4},
        "certainty": {"type": "integer"},
    },
    "required": ["answer", "keywords", "certainty"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Grammar:
    """vLLM's options of a constrained output, and what a user of a chat model adds to a question."""

    options: dict[str, Any]
    asked: str = ""


GRAMMARS = {
    "json": Grammar({"json": SCHEMA, "disable_any_whitespace": True}),
    "regex": Grammar({"regex": r"def [a-z]{2,10}\(self(, [a-z]{2,10}){0,3}\):\n    return [a-z]{2,10}\n"}),
    "choice": Grammar({"choice": ["return self.value\n", "return None\n", "raise ValueError(name)\n"]}),
    "grammar": Grammar(
        {"grammar": 'root ::= (name " = " name ("(" name ")")? "\\n"){3}\nname ::= [a-z] [a-z_]* [a-z]'}
    ),
}
CHAT_GRAMMARS = {
    "json": Grammar(
        {"json": ANSWER_SCHEMA, "disable_any_whitespace": True},
        "Answer with a JSON object that has the keys answer, keywords and certainty (0 to 100).",
    ),
    "regex": Grammar(
        {"regex": r"(Yes|No|It depends), because [A-Za-z ,']{20,160}\."},
        "Can this be answered for certain? Begin with Yes, No or It depends, and give one reason.",
    ),
    "choice": Grammar(
        {"choice": ["This is a question of fact.", "This is a question of opinion.", "This is a task."]},
        "Do not answer it. Say whether this is a question of fact, a question of opinion, or a task.",
    ),
    "grammar": Grammar(
        {"grammar": 'root ::= ("- " words "\\n"){3}\nwords ::= word (" " word){2,11}\nword ::= [A-Za-z]+'},
        "Answer with a list of three short points.",
    ),
}
JSON_TEXT = b'{"name": "read_line", "args": ["self", "size", "limit of it"], "size": 17}'


@dataclass(frozen=True)
class Options:
    """What is measured."""

    target: Path
    drafter: Path
    prompts: Prompts
    temperature: float = 0.0
    vocabulary: int = 128_256
    out: Path = RESULTS

    @property
    def draftings(self) -> dict[str, Drafting]:
        return {"chain": Drafting(1, 4, 4), "tree": Drafting(4, 4, 16)}

    @property
    def grammars(self) -> dict[str, Grammar]:
        return GRAMMARS if isinstance(self.prompts.source, int) else CHAT_GRAMMARS


def make_prompts(options: Options, asked: str) -> list[list[int]]:
    """Token ids of the prompts, with `asked` behind each chat prompt.

    Raises:
        ValueError: The target has no chat template.
    """
    source = options.prompts.source
    if isinstance(source, int):
        tokenizer = AutoTokenizer.from_pretrained(options.target)
        return tokenized(held_out_prompts(source, seed=SEED, max_chars=600), tokenizer)
    reader = Reader.of(options.target, None)
    turns = [prompt.turns[0] for prompt in chosen_prompts(source, (), options.prompts.questions)]
    prompts = [reader.prompt([Turn("user", f"{turn}\n\n{asked}")]) for turn in turns]
    return [prompt for prompt in prompts if len(prompt) + options.prompts.new_tokens <= MAX_MODEL_LEN]


def constrained_texts(options: Options, grammar: Grammar) -> list[tuple[torch.Tensor, int]]:
    """Plain vLLM's completions under one grammar: prompt and completion in one tensor, and the prompt's length."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = engine(options)
    prompts = [{"prompt_token_ids": prompt} for prompt in make_prompts(options, grammar.asked)]
    sampling = [
        SamplingParams(
            temperature=options.temperature,
            seed=index,
            max_tokens=options.prompts.new_tokens,
            structured_outputs=StructuredOutputsParams(**grammar.options),
        )
        for index in range(len(prompts))
    ]
    outputs = llm.generate(prompts, sampling)
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
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=8,
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 28,
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
    for name, grammar in options.grammars.items():
        texts = constrained_texts(options, grammar)
        found = {kind: measure(target, drafter, texts, shape) for kind, shape in options.draftings.items()}
        rows.append({"grammar": name} | {kind: asdict(acceptance) for kind, acceptance in found.items()})
    return {
        **options.prompts.described,
        "temperature": options.temperature,
        "results": rows,
        "mask_microseconds": {"vocabulary": options.vocabulary} | mask_times(options.vocabulary),
    }


def print_table(report: cli.Report, console: Console) -> None:
    table = Table(title=f"tokens per step under grammars, prompts: {report['prompts']}", title_justify="left")
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
    add_prompts(parser, prompts=24, new_tokens=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument(
        "--vocabulary", type=int, default=128_256, help="words of the vocabulary that masks are timed on"
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    drafter = resolve_drafter(args.drafter, str(args.target))
    return Options(args.target, drafter, parsed_prompts(args, parser), args.temperature, args.vocabulary, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return cli.run_benchmark(
        MODULE,
        argv,
        parse_args,
        run,
        print_table,
        name=lambda options: options.prompts.record_name("structured-output"),
    )


if __name__ == "__main__":
    sys.exit(main())
