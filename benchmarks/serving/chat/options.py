# SPDX-License-Identifier: Apache-2.0
"""Options of the comparison on chat prompts."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import cli
from benchmarks.record import RESULTS
from benchmarks.serving.chat.methods import DTYPES, PEERS, Serving
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.predict.trees import parse_tree, tree_list

MODULE = "benchmarks.serving.chat"
TREES = ("1x4", "2x4", "4x4", "8x4:32")
IDENTITY_TREES = ("4x4",)


@dataclass(frozen=True)
class Options:
    """What is asked, how it is continued, and what is shown."""

    serving: Serving
    prompts: str = "mt-bench"
    categories: tuple[str, ...] = ()
    questions: int = 0  # of each category; 0 takes all
    temperatures: tuple[float, ...] = (0.0, 0.7)
    max_tokens: int = 256
    peers: tuple[str, ...] = tuple(PEERS)
    chat_template: str | None = None
    identity: bool = False
    check: bool = False
    device: str = "cpu"
    out: Path = RESULTS

    def __post_init__(self) -> None:
        if self.questions < 0:
            raise ValueError(f"questions must be at least 0, not {self.questions}")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, not {self.max_tokens}: the first comes with the prompt")
        if not self.temperatures or min(self.temperatures) < 0 or len({*self.temperatures}) < len(self.temperatures):
            raise ValueError(f"temperatures must be different and at least 0, not {list(self.temperatures)}")
        if self.max_tokens >= self.serving.window:
            raise ValueError(f"a window of {self.serving.window} has no room for {self.max_tokens} tokens and a prompt")

    @property
    def name(self) -> str:
        """Of the record: runs on other prompts have another one."""
        source = self.prompts if self.prompts in ("mt-bench", "spec-bench") else Path(self.prompts).stem
        return f"chat-identity-{source}" if self.identity else f"chat-{source}"


def add_serving(parser: argparse.ArgumentParser, *, trees: Sequence[str], batch: int) -> None:
    """Options of the engines, as `parsed_serving` reads them."""
    cli.add_target(parser)
    cli.add_drafter(parser)
    parser.add_argument(
        "--trees",
        type=tree_list,
        metavar="TREES",
        help="BEAMSxLENGTH or BEAMSxLENGTH:NODES in one argument, + behind one: with copies of the text, ~ at its end: "
        f"adaptive; default {' '.join(trees)!r}",
    )
    parser.add_argument("--batch", type=int, default=batch, help="requests at a time")
    parser.add_argument("--dtype", choices=DTYPES, help="default bfloat16, for comparisons of tokens float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--eager", action="store_true", help="keep vLLM from compiling the model")
    parser.add_argument("--chat-template", help="vicuna, or a file of Jinja source (default: the tokenizer's own)")


def parsed_serving(args: argparse.Namespace, *, window: int, trees: Sequence[str], dtype: str = "bfloat16") -> Serving:
    """Raises ValueError for options that contradict each other, and where no drafter is found."""
    return Serving(
        target=args.target,
        drafter=resolve_drafter(args.drafter, str(args.target)),
        window=window,
        trees=args.trees or tuple(map(parse_tree, trees)),
        batch=args.batch,
        dtype=args.dtype or dtype,
        device=args.device,
        eager=args.eager,
    )


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(
        MODULE,
        "Tokens per step on chat prompts, first and second turns: ReDrafter, served and simulated, against prompt "
        "lookup and suffix decoding of vLLM. Second turns follow the target's greedy answers to the first.",
    )
    add_serving(parser, trees=TREES, batch=8)
    parser.add_argument("--window", type=int, default=2048, help="maximum tokens of a prompt with its response")
    parser.add_argument("--prompts", default="mt-bench", help='mt-bench, spec-bench, or a file of {"turns": …} lines')
    parser.add_argument("--categories", nargs="+", default=[], help="only these categories of the prompts")
    parser.add_argument("--questions", type=int, default=1, help="the first N of each category; 0 takes all")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7], help="a table each; 0 is greedy")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens that each prompt is continued by")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="vLLM's own methods")
    parser.add_argument(
        "--lookup", type=int, nargs=2, default=[2, 4], metavar=("SHORTEST", "LONGEST"), help="n-grams of prompt lookup"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 unless served and simulated tokens per step agree on greedy requests",
    )
    parser.add_argument(
        "--identity",
        action="store_true",
        help="instead: count the requests whose tokens are those of plain vLLM, at batch 1 and --batch; exit with 1 on "
        f"any difference. Default trees {' '.join(IDENTITY_TREES)!r}",
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    try:
        serving = parsed_serving(
            args,
            window=args.window,
            trees=IDENTITY_TREES if args.identity else TREES,
            dtype="float32" if args.identity else "bfloat16",
        )
        return Options(
            serving=replace(serving, lookup=(args.lookup[0], args.lookup[1])),
            prompts=args.prompts,
            categories=tuple(args.categories),
            questions=args.questions,
            temperatures=tuple(args.temperatures),
            max_tokens=args.max_tokens,
            peers=tuple(args.peers),
            chat_template=args.chat_template,
            identity=args.identity,
            check=args.check,
            device=args.device,
            out=args.out,
        )
    except ValueError as error:
        parser.error(str(error))
