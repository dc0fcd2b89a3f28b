# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_vllm.checkpoint.convert SRC DST [--allow-pickle]`

Converts a drafter checkpoint with any of the known tensor names to Apple's layout.
"""

import argparse
import sys
from collections.abc import Sequence

from redrafter_vllm.utils.paths import user_path
from redrafter_vllm.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.checkpoint.convert"), description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument(
        "source", metavar="SRC", type=user_path, help="directory with the drafter, or a target that holds one"
    )
    parser.add_argument(
        "destination", metavar="DST", type=user_path, help="new directory for Apple's layout in safetensors"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read *.bin, *.pt and *.pth as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    # Imported here, since --help must not wait for torch.
    from safetensors import SafetensorError

    from redrafter_vllm.checkpoint.conversion import convert
    from redrafter_vllm.checkpoint.errors import CheckpointError

    try:
        config = convert(arguments.source, arguments.destination, allow_pickle=arguments.allow_pickle)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:
        print(f"{arguments.destination} cannot be written ({error}): make room or name another place.", file=sys.stderr)
        return 1
    print(f"{arguments.destination}: {config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
