# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.pictures [NAME ...]`: make the pictures of docs/assets by running what they show."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from redrafter_vllm.chat.answers import ChatError
from redrafter_vllm.watch.pair import Pair, chat_pair
from tools.pictures import diagrams, pages
from tools.pictures.errors import PictureError
from tools.pictures.live import dashboard
from tools.site.__main__ import SiteError

ASSETS = pages.ROOT / "docs" / "assets"
# How each picture is made, by its file.
PICTURES: dict[str, Callable[[Pair, Path], None]] = {
    "front_page.png": pages.front_page,
    "trees.png": pages.trees,
    "benchmark.png": pages.benchmark,
    "training.png": pages.training,
    "dashboard.png": dashboard,
    "watch.gif": pages.comparison,
    "reliability_greedy.png": diagrams.reliability_greedy,
    "reliability_sampled.png": diagrams.reliability_sampled,
}
NAMES = {Path(file).stem: file for file in PICTURES}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.pictures",
        description="Make the pictures of docs/assets by running what they show: 40 minutes on two cores. Needs "
        "SmolLM2-135M-Instruct (redrafter fetch-smollm2), chromium, and for the dashboard prometheus.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the pictures (default: docs/assets)")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    try:
        pair = demonstration()
        for name in options.names or NAMES:
            picture = options.out.absolute() / NAMES[name]
            PICTURES[NAMES[name]](pair, picture)
            print(f"{picture}: {picture.stat().st_size // 1000} kB")
    except (PictureError, SiteError, ChatError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def demonstration() -> Pair:
    """SmolLM2 with its drafter. Raises `PictureError` where the target has not been downloaded."""
    pair = chat_pair(pages.MODELS)
    if not pair.is_here:
        raise PictureError("The pictures show SmolLM2-135M-Instruct, which is not here yet: redrafter fetch-smollm2")
    return pair


if __name__ == "__main__":
    sys.exit(main())
