# SPDX-License-Identifier: Apache-2.0
"""Embed a small Llama and its drafter in a larger shape: the same tokens at the larger model's cost.

`python -m benchmarks.models.inflate --model small/ --drafter small-drafter/ --shape vicuna-7b --out big/`
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import cli
from benchmarks.models.inflate.build import DRAFTER_FOLDER, Inflation, Options, allocated_bytes
from benchmarks.models.inflate.writer import DTYPES
from redrafter_vllm.checkpoint.config import tensor_shapes
from redrafter_vllm.predict.shapes import SHAPES, count, find_shape
from redrafter_vllm.utils.paths import user_path


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser("benchmarks.models.inflate", "Embed a small Llama and its drafter in a larger shape.")
    parser.add_argument("--model", type=user_path, required=True, help="folder of the small target")
    parser.add_argument("--drafter", type=user_path, help="folder of its drafter (None: the target alone)")
    parser.add_argument(
        "--shape", required=True, help=f"{', '.join(SHAPES)}, or the path of a config.json or its folder"
    )
    parser.add_argument(
        "--out", type=user_path, required=True, help=f"new folder; the drafter goes to {DRAFTER_FOLDER}/"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="stored type")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file, in 10^9 bytes")
    parser.add_argument("--exit-dim", type=int, help="of the large drafter (None: grows with the hidden size)")
    parser.add_argument("--draft-layers", type=int, help="ResBlocks of the large drafter (None: as in the small one)")
    parser.add_argument(
        "--draft-vocab-size", type=int, help="of the large drafter (None: as large a part as in the small one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check, print sizes, write nothing")
    return parser.parse_args(argv)


def describe(inflation: Inflation) -> str:
    """Sizes, one line each."""
    options, contents = inflation.options, inflation.target_contents
    shards = len(contents.shards(options.shard_bytes))
    lines = [
        f"target   {options.shape.num_parameters / 1e9:8.3f} B parameters {contents.total_bytes / 1e9:9.3f} GB in "
        f"{shards} file{'s' if shards > 1 else ''}, {options.dtype}"
    ]
    if inflation.drafter is not None and (drafter := inflation.drafter_contents) is not None:
        parameters = count(tensor_shapes(inflation.drafter.config))
        lines.append(f"drafter  {parameters / 1e9:8.3f} B parameters {drafter.total_bytes / 1e9:9.3f} GB")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    inflation = Inflation(
        Options(
            model=args.model,
            shape=find_shape(args.shape),
            out=args.out,
            drafter=args.drafter,
            dtype=args.dtype,
            shard_bytes=int(args.shard_gb * 1e9),
            exit_dim=args.exit_dim,
            num_draft_layers=args.draft_layers,
            draft_vocab_size=args.draft_vocab_size,
        )
    )
    print(describe(inflation))
    if args.dry_run:
        return 0
    try:
        inflation.write()
    except OSError as error:
        raise ValueError(f"{args.out} could not be written ({error}); nothing was left there") from None
    print(f"{args.out}: {allocated_bytes(args.out) / 1e9:.3f} GB on the disk, as zeros are not stored where possible")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.ending(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
