# SPDX-License-Identifier: Apache-2.0
"""Options of the demonstration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.assets import BUILD
from benchmarks.cli import add_beams, make_parser
from benchmarks.engines.offline import MAX_MODEL_LEN
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.utils.paths import user_path


@dataclass(frozen=True)
class DemoOptions:
    """The command line, checked. Raises ValueError."""

    target: Path | None  # None: the committed one, or else one trained for the demonstration
    drafter: Path | None  # None: one trained for the demonstration
    recipe: str
    prompts: int
    max_tokens: int
    temperature: float
    drafting: DraftingConfig
    out: Path

    def __post_init__(self) -> None:
        if self.prompts < 1 or not 8 <= self.max_tokens <= MAX_MODEL_LEN // 2:
            raise ValueError(f"need at least 1 prompt and 8 to {MAX_MODEL_LEN // 2} tokens for each")
        if not self.temperature > 0:
            raise ValueError(f"the seeded comparison needs a temperature above 0, not {self.temperature}")
        for path in (self.target, self.drafter):
            if path is not None and not (path / "config.json").is_file():
                raise ValueError(f"{path} is no checkpoint: it has no config.json")


def parse_args(argv: Sequence[str]) -> DemoOptions:
    """The options; exits with argparse's message where one is impossible."""
    parser = make_parser(
        "benchmarks.demo",
        "Train a drafter, serve with it through `vllm serve`, and compare with plain vLLM token by token.",
    )
    parser.add_argument(
        "--target", type=user_path, help="target model (default: the committed one, or one trained here)"
    )
    parser.add_argument("--drafter", type=user_path, help="drafter to use instead of training one")
    parser.add_argument("--recipe", choices=("short", "long"), default="short", help="how long the drafter is trained")
    parser.add_argument("--prompts", type=int, default=32, help="prompts from files held out of all training")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens that each prompt is continued by")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the seeded comparison")
    add_beams(parser)
    parser.add_argument("--nodes", type=int, default=16, help="node slots of the draft tree")
    parser.add_argument("--out", type=user_path, default=BUILD / "demo", help="folder for everything written")
    args = parser.parse_args(argv)
    try:
        return DemoOptions(
            target=args.target,
            drafter=args.drafter,
            recipe=args.recipe,
            prompts=args.prompts,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            drafting=DraftingConfig(args.beam_width, args.beam_length, args.nodes),
            out=args.out.resolve(),
        )
    except ValueError as error:
        parser.error(str(error))
