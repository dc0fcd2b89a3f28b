# SPDX-License-Identifier: Apache-2.0
"""`redrafter predict`: tokens per step, duration of a step and speed-up by batch size on a GPU that is not there."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import check_file, user_path, user_place
from redrafter_vllm.utils.program import program

if TYPE_CHECKING:
    from redrafter_vllm.predict.acceptance import Acceptance
    from redrafter_vllm.predict.report import Report

GPU, ACCEPTANCE = "h100", "paper"
TREES = "1x4 4x4:8 4x4:16 4x4:16~"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 1024
MAX_BATCH = 4096


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.predict"),
        description="Predict, by a cost model, how fast a target is with a drafter on a GPU: tokens per step, duration "
        "of a step and speed-up by batch size, for fixed trees and for trees that follow the load. Nothing is run, and "
        "no weights are read: a prediction is no measurement (redrafter bench measures).",
    )
    parser.add_argument("--target", type=user_place, help="name (see --list), or folder with a config.json")
    parser.add_argument("--gpu", default=GPU, help=f"name (see --list); default {GPU}")
    parser.add_argument(
        "--gpus",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON file with further GPUs, as in redrafter_vllm/predict/gpus.json; may be given several times",
    )
    parser.add_argument(
        "--tensor-parallel", type=int, metavar="N", help="GPUs; default: 1, 2, 4 or 8, as the target needs"
    )
    parser.add_argument("--drafter", type=user_path, help="its folder; default: the paper's, in the target's size")
    parser.add_argument(
        "--draft-vocab-size", type=int, metavar="N", help="without --drafter: trim its vocabulary to N tokens"
    )
    parser.add_argument(
        "--acceptance",
        type=user_place,
        help="name (see --list), folder of a drafter that was measured, or JSON file; default: what was measured with "
        f"--drafter, else {ACCEPTANCE}",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=list(BATCHES),
        metavar="N",
        help="requests at a time; default 1 2 4 … 64",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=CONTEXT,
        metavar="N",
        help=f"tokens in the cache of each request; default {CONTEXT}",
    )
    parser.add_argument(
        "--tree",
        nargs="+",
        default=[TREES],
        metavar="WxT:N",
        help="beams x length : nodes, ~ behind it for a tree that adapts to the load, up to N nodes; default " + TREES,
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write the predictions with all that went in")
    parser.add_argument(
        "--plot", type=user_path, metavar="PNG", help="draw the speed-up by batch size; needs matplotlib"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the known GPUs, targets and acceptances; no prediction"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.target is None and not arguments.list:
        parser.error("--target is missing: a name (--list shows them) or a folder with a config.json")
    if arguments.drafter is not None and arguments.draft_vocab_size is not None:
        parser.error("--draft-vocab-size is for the paper's drafter; that of --drafter has its own vocabulary")
    try:
        return _list(arguments.gpus) if arguments.list else _predict(arguments)
    except ValueError as error:  # of options, GPUs, shapes, acceptance, the drafter
        print(error, file=sys.stderr)
    except OSError as error:
        print(sentence(error), file=sys.stderr)
    return 1


def _predict(arguments: argparse.Namespace) -> int:
    # Imported here, since --help must not wait for them.
    from redrafter_vllm.predict.report import grid, remarks, write_json, write_plot

    for file in (arguments.json, arguments.plot):
        if file is not None:
            check_file(file)
    report = _report(arguments)
    console = _console()
    console.print(grid(report).rich())
    for remark in remarks(report):
        console.print(remark, markup=False, highlight=False)
    for file, write in ((arguments.json, write_json), (arguments.plot, write_plot)):
        if file is not None:
            write(report, file)
            print(file)
    return 0


def _report(arguments: argparse.Namespace) -> "Report":
    from redrafter_vllm.predict.gpu import find_gpu, known_gpus
    from redrafter_vllm.predict.prediction import Setup, predict, smallest_parallel
    from redrafter_vllm.predict.report import Report
    from redrafter_vllm.predict.shapes import drafter_config, find_shape, published_drafter
    from redrafter_vllm.predict.trees import parse_tree, tree_text

    if (wrong := next((batch for batch in arguments.batch if not 1 <= batch <= MAX_BATCH), None)) is not None:
        raise ValueError(f"--batch {wrong} is out of range: it must be between 1 and {MAX_BATCH}")
    trees = [parse_tree(text) for given in arguments.tree for text in given.split()]
    if (copying := next((tree for tree in trees if tree.copies_text), None)) is not None:
        raise ValueError(
            f"--tree {tree_text(copying)}: what copies of the text bring depends on the text, and is not predicted; "
            "leave the + out"
        )
    gpu = find_gpu(arguments.gpu, known_gpus(tuple(arguments.gpus)))
    shape = find_shape(arguments.target)
    if arguments.drafter is None:
        drafter = published_drafter(shape, draft_vocab_size=arguments.draft_vocab_size)
    else:
        drafter = drafter_config(arguments.drafter)
    parallel = arguments.tensor_parallel if arguments.tensor_parallel is not None else smallest_parallel(gpu, shape)
    setup = Setup(gpu, parallel, shape, drafter, arguments.context)
    acceptance = _acceptance(arguments.acceptance, arguments.drafter)
    predictions = predict(setup, acceptance, trees, sorted(set(arguments.batch)))
    name = arguments.target if not Path(arguments.target).exists() else Path(arguments.target).resolve().name
    return Report(arguments.gpu, name, setup, acceptance, predictions)


def _acceptance(name: str | None, drafter: Path | None) -> "Acceptance":
    from redrafter_vllm.predict.acceptance import find_acceptance, of_drafter

    if name is None and drafter is not None:
        return of_drafter(drafter)
    return find_acceptance(name or ACCEPTANCE)


def _list(files: Sequence[Path]) -> int:
    from redrafter_vllm.predict.gpu import known_gpus
    from redrafter_vllm.predict.report import inputs, sources

    console, gpus = _console(), known_gpus(tuple(files))
    for grid in inputs(gpus):
        console.print(grid.rich())
    for source in sources(gpus):
        console.print(source, markup=False, highlight=False)
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=max(80, Console().width))


if __name__ == "__main__":
    sys.exit(main())
