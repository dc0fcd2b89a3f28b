# SPDX-License-Identifier: Apache-2.0
"""`python -m training.distill`: `python -m training` on the standard library's sources with the `short` recipe."""

import sys
from collections.abc import Sequence

from training.__main__ import main as train
from training.corpus import STDLIB

DEFAULTS = ("--data", STDLIB, "--recipe", "short")


def main(argv: Sequence[str] | None = None) -> int:
    """Takes the same flags; later ones win over its defaults."""
    return train([*DEFAULTS, *(sys.argv[1:] if argv is None else argv)], program="training.distill")


if __name__ == "__main__":
    sys.exit(main())
