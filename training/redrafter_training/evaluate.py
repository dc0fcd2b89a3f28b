# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.evaluate --target DIR`: tokens per step of a drafter, without a serving engine.

Prints one JSON line per number of beams (see `redrafter_training.trainer.acceptance`), and one with
`redrafter{i}_kl` and `redrafter{i}_top{k}` by depth i.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redrafter_training.utils.command import Interruption, run_command
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.paths import user_path, user_place
from redrafter_vllm.utils.program import program

BATCH_SIZE = 8  # chat prompts answered at once
MAX_WINDOW = 32_768  # tokens of a chat prompt with its response
WINDOW = 256  # tokens per window of held-out text for the figures by depth


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_command(partial(_main, args, parser), lambda: "interrupted: nothing is stored")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_training.evaluate"),
        description="Measure the tokens per step that a drafter reaches, without a serving engine.",
    )
    parser.add_argument("--target", type=user_place, required=True, help="folder or hub name of the target")
    parser.add_argument("--drafter", type=user_place, help="the drafter's folder (default: where serving finds it)")
    parser.add_argument("--beam-width", type=int, nargs="+", default=[1, 2, 4, 8], help="one row of figures each")
    parser.add_argument("--beam-length", type=int, default=4, help="draft tokens per beam, the root not counted")
    parser.add_argument("--max-nodes", type=int, help="nodes per tree (default: all that the beams hold)")
    parser.add_argument(
        "--copies", action="store_true", help="trees also have copies of the text, as in serving; not those of one beam"
    )
    parser.add_argument(
        "--prompts",
        default="64",
        help="a number of prompts from held-out source files, or chat prompts: mt-bench, spec-bench, or a file of "
        'their form, {"turns": [prompt, ...]} per line; figures are then given by category, too',
    )
    parser.add_argument("--chat-template", help="vicuna, or a file of Jinja source (default: the tokenizer's own)")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--engine",
        choices=("auto", "vllm", "transformers"),
        default="auto",
        help="what answers chat prompts: vllm, many at once and in the target's own type, or transformers, in float32 "
        "(default: vllm where it is installed)",
    )
    parser.add_argument("--windows", type=int, default=32, help="windows of held-out text for the figures by depth")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--corpus", type=user_path, help="folder of Python files (default: the standard library)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code from the target's repository")
    parser.add_argument(
        "--reliability",
        type=user_path,
        metavar="PNG",
        help="with chat prompts: draw how often nodes are accepted over how often that was estimated, by the drafter "
        "and as adaptive serving corrects it; for the last number of beams",
    )
    parser.add_argument("--card", action="store_true", help="add the results to the card in the drafter's folder")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="then say what may limit the acceptance: another target or text than in training, the temperature, the "
        "draft vocabulary; with the largest --beam-width",
    )
    return parser


def _main(args: argparse.Namespace, parser: argparse.ArgumentParser, _: Interruption) -> int:
    # Imported here, since --help must not wait for torch and transformers.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from redrafter_training.data.windows import held_out_windows
    from redrafter_training.run.prompt_evaluation import ALL
    from redrafter_training.target.model import DeferredTarget, TargetModel
    from redrafter_training.target.properties import read_facts
    from redrafter_training.trainer.acceptance import Drafting, measure_each
    from redrafter_training.trainer.metrics import depth_figures
    from redrafter_vllm.checkpoint.card import check_card_place
    from redrafter_vllm.checkpoint.locate import resolve_drafter
    from redrafter_vllm.model.drafter import Drafter

    trusted = {"trust_remote_code": args.trust_remote_code}
    try:
        facts = read_facts(args.target, **trusted)
        facts.check_length(args.new_tokens + 1, "--new-tokens and a prompt")
        drafting = [
            Drafting(w, args.beam_length, args.max_nodes or w * args.beam_length, args.copies and w > 1)
            for w in args.beam_width
        ]
    except ValueError as problem:
        parser.error(str(problem))
    folder = resolve_drafter(args.drafter, args.target)
    if args.reliability is not None:
        _check_reliability(args, parser)
    if args.card:
        check_card_place(folder)
    # Loaded when something is computed with it: vLLM has a copy of its own while it answers.
    target = DeferredTarget(
        lambda: TargetModel(AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32, **trusted))
    )
    drafter = Drafter.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(args.target, **trusted)
    on_files = args.prompts.isdigit()
    temperatures = [args.temperature, *([0.0] if args.diagnose and args.temperature > 0 else [])]
    write = _continue_files if on_files else _answer_prompts
    (answered, *greedy), written_in = write(args, target, tokenizer, facts.longest, temperatures)
    if on_files:
        overall = measure_each(target, drafter, answered, drafting, quiet=False)
        measured = [(shape, {ALL: acceptance}) for shape, acceptance in zip(drafting, overall, strict=True)]
        for shape, groups in measured:
            print(strict_json.dumps(asdict(shape) | asdict(groups[ALL])))
    else:
        measured = _by_category(args, target, drafter, answered, drafting)
        if args.reliability is not None:
            _draw_reliability(args, folder, target, drafter, answered, drafting[-1])
    if args.card:
        _write_results(args, folder, measured, len(answered), written_in)
    if on_files:
        length = int(min(WINDOW, facts.longest))
        windows = held_out_windows(tokenizer, args.windows, length=length, corpus=args.corpus)
        print(strict_json.dumps(depth_figures(drafter, target, windows, args.beam_length).named()))
    if args.diagnose:
        shape, figures = max(measured, key=lambda each: each[0].beam_width)
        again = [_pairs(texts, target) for texts in greedy]
        _diagnose(args, folder, target, drafter, (shape, figures[ALL]), _pairs(answered, target), *again)
    return 0


def _diagnose(
    args: argparse.Namespace,
    folder: Path,
    target: Any,
    drafter: Any,
    measured: tuple[Any, Any],
    texts: Sequence[tuple[Any, int]],
    greedy: Sequence[tuple[Any, int]] | None = None,
) -> None:
    """Prints the findings about a shape with its acceptance; `greedy` are responses at temperature 0."""
    from redrafter_training.run.diagnosis import Measured, coverage, diagnose
    from redrafter_training.trainer.acceptance import measure
    from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
    from redrafter_vllm.checkpoint.places import read_provenance
    from redrafter_vllm.utils.findings import report

    shape, acceptance = measured
    at_zero = measure(target, drafter, greedy, shape) if greedy is not None else None
    figures = Measured(shape, acceptance, at_zero, coverage(texts, drafter.draft_tokens))
    findings = diagnose(read_provenance(folder), target_fingerprint(args.target), figures)
    print("\n" + report(list(findings)), end="")


def _pairs(answered: Sequence[Any], target: Any) -> list[tuple[Any, int]]:
    """Each text, on the target's device, with the length of its prompt."""
    pairs = [each if isinstance(each, tuple) else (each.text, each.start) for each in answered]
    return [(text.to(target.device), start) for text, start in pairs]


def _continue_files(
    args: argparse.Namespace, target: Any, tokenizer: Any, longest: float, temperatures: Sequence[float]
) -> tuple[list[list[tuple[Any, int]]], str]:
    """Continuations of prompts from held-out source files, each with the prompt's length, by temperature; and the type
    that they were computed in.
    """
    from redrafter_training.run.evaluation import held_out_texts

    write = partial(
        held_out_texts,
        target,
        tokenizer,
        prompts=int(args.prompts),
        new_tokens=args.new_tokens,
        seed=args.seed,
        corpus=args.corpus,
        longest=longest,
    )
    return [write(temperature=temperature) for temperature in temperatures], "float32"


def _check_reliability(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits where the picture could not be drawn, before the target answers anything."""
    if args.prompts.isdigit():
        parser.error("--reliability needs chat prompts: give mt-bench, spec-bench or a file to --prompts")
    if find_spec("matplotlib") is None:
        parser.error("--reliability needs matplotlib: pip install matplotlib")
    if args.reliability.exists():
        parser.error(f"--reliability {args.reliability} exists: choose another file, or remove it")


def _answer_prompts(
    args: argparse.Namespace, target: Any, tokenizer: Any, longest: float, temperatures: Sequence[float]
) -> tuple[list[list[Any]], str]:
    """The target's responses to all turns of chat prompts, by temperature; and the type that they were computed in."""
    from redrafter_training.data.chat_templates import resolve_chat_template
    from redrafter_training.run.prompt_evaluation import answer_prompts
    from redrafter_vllm.prompt_sets import load_prompts

    prompts, window = load_prompts(args.prompts), int(min(longest, MAX_WINDOW))
    tokens = args.new_tokens * sum(len(prompt.turns) for prompt in prompts) * len(temperatures)
    template = resolve_chat_template(tokenizer, args.chat_template)
    engine = _chat_engine(args, target, tokenizer, window, tokens)
    texts = []
    for temperature in temperatures:
        answered, left_out = answer_prompts(
            engine,
            tokenizer,
            template,
            prompts,
            new_tokens=args.new_tokens,
            window=window,
            temperature=temperature,
            seed=args.seed,
            seeds_each=engine.seeds_each,
        )
        texts.append(answered)
        if left_out:
            print(f"{left_out} turns are left out: with their response they are longer than a window", file=sys.stderr)
    return texts, engine.dtype


def _chat_engine(args: argparse.Namespace, target: Any, tokenizer: Any, window: int, tokens: int) -> Any:
    """What `--engine` says.

    Raises:
        DataError: vLLM is wanted and not installed.
        EngineError: it does not start.
    """
    from redrafter_training.responses.config import EngineSettings
    from redrafter_training.responses.transformers_engine import TransformersEngine
    from redrafter_training.responses.vllm_engine import check_vllm, has_vllm, make_engine

    if args.engine == "transformers" or (args.engine == "auto" and not has_vllm()):
        return TransformersEngine(target, BATCH_SIZE, quiet=False)
    check_vllm()
    settings = EngineSettings(target=args.target, trust_remote_code=args.trust_remote_code)
    return make_engine(settings, tokenizer, window=window, tokens=tokens, progress=True)


def _by_category(
    args: argparse.Namespace, target: Any, drafter: Any, answered: Sequence[Any], drafting: Sequence[Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """Prints one line per shape of the draft; returns the shapes with their figures by group."""
    from redrafter_training.run.prompt_evaluation import acceptance_by_category

    figures = acceptance_by_category(target, drafter, answered, drafting, quiet=False)
    measured = list(zip(drafting, figures, strict=True))
    for shape, groups in measured:
        by_group = {group: asdict(acceptance) for group, acceptance in groups.items()}
        print(strict_json.dumps(asdict(shape) | {"prompts": args.prompts} | by_group))
    return measured


def _draw_reliability(
    args: argparse.Namespace, folder: Path, target: Any, drafter: Any, answered: Sequence[Any], shape: Any
) -> None:
    from redrafter_training.trainer.reliability import (
        calibration_error,
        estimate_steps,
        plot_reliability,
        reliability,
    )
    from redrafter_vllm.adaptive.stored import stored_calibration

    estimates = estimate_steps(target, drafter, _pairs(answered, target), shape, stored_calibration(folder))
    curves = {
        "drafter": reliability(estimates.drafter, estimates.is_accepted),
        "adapted while serving": reliability(estimates.adapted, estimates.is_accepted),
    }
    plot_reliability(curves, args.reliability)
    errors = {name: calibration_error(bins) for name, bins in curves.items()}
    print(strict_json.dumps({"calibration_error": errors, "nodes": len(estimates.is_accepted)}))


def _write_results(
    args: argparse.Namespace,
    folder: Path,
    measured: Sequence[tuple[Any, dict[str, Any]]],
    texts: int,
    written_in: str,
) -> None:
    from redrafter_training.run.prompt_evaluation import ALL, results_text
    from redrafter_training.trainer.card import write_training_card
    from redrafter_vllm.checkpoint.card import add_results, place_name
    from redrafter_vllm.checkpoint.places import CARD_FILE, read_provenance

    if not (folder / CARD_FILE).is_file() and (report := read_provenance(folder)):
        write_training_card(folder, report | {"target": args.target})
    prompts = f"{args.prompts} held-out source files" if args.prompts.isdigit() else place_name(args.prompts)
    sampling = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    copies = ", with copies of the text" if args.copies else ""
    title = f"{prompts}, {sampling}, up to {args.new_tokens} new tokens{copies}"
    counted = measured[0][1][ALL].tokens
    said = (
        f"{title}; {texts:,} responses of the target in {written_in} with {counted:,} tokens behind their first ones, "
        "simulated in float32."
    )
    add_results(folder, title, f"{said}\n\n{results_text(measured)}")


if __name__ == "__main__":
    sys.exit(main())
