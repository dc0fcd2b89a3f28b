# SPDX-License-Identifier: Apache-2.0
"""`redrafter bench MODE TARGET`: plain vLLM, ReDrafter and other configurations, in turns on the same prompts."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrafter_vllm.bench.load import Load, Ramp, most_at_a_time, parse_load
from redrafter_vllm.bench.settings import CONCURRENCY, MODES, Settings
from redrafter_vllm.cli.asking import divided
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import check_writable, user_path, user_place
from redrafter_vllm.utils.program import program

if TYPE_CHECKING:
    from redrafter_vllm.bench.rounds import Results
    from redrafter_vllm.bench.settings import Plan

# What measures is imported where it runs, since --help must not wait for torch and transformers.


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.bench"),
        description="How fast a target is with ReDrafter on this machine: plain vLLM, ReDrafter and any other "
        "configuration take turns on the same prompts, round after round. Each round is stored when it has ended; the "
        "same command continues an interrupted benchmark.",
        epilog="Options after -- are passed to vLLM, for all configurations, for instance: "
        "redrafter bench offline MODEL -- --dtype float32",
    )
    parser.add_argument(
        "mode", choices=MODES, help="offline: engines without a server; serve: vllm serve, asked by vllm bench serve"
    )
    parser.add_argument("target", metavar="TARGET", type=user_place, help="folder or hub id of the target")
    parser.add_argument("--drafter", type=user_place, help="folder or hub id; default: where serving finds it")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="one more speculative config of vLLM to compare, of any method; may be given several times",
    )
    parser.add_argument("--without-redrafter", action="store_true", help="compare only plain vLLM and every --config")
    parser.add_argument(
        "--data", default=Settings.data, help="mt-bench (default), spec-bench, random, or a file of prompts"
    )
    parser.add_argument(
        "--concurrency",
        type=_load,
        nargs="+",
        default=list(CONCURRENCY),
        metavar="N",
        help="requests at a time; 1-32-1, offline: from one at a time up to 32 and back; default 1 2 4 … 64",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=Settings.requests,
        metavar="N",
        help=f"of a turn, at least; default {Settings.requests}",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=Settings.prompt_tokens,
        metavar="N",
        help=f"of the longest prompt, or of random ones; default {Settings.prompt_tokens}",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=Settings.max_tokens,
        metavar="N",
        help=f"new tokens of a request; default {Settings.max_tokens}",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=Settings.rounds,
        metavar="N",
        help=f"default {Settings.rounds}; from 6 on intervals have a confidence of 95 %%",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0, greedy")
    parser.add_argument("--ignore-eos", action="store_true", help="let every request have all its new tokens")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="keep only one engine in memory; else as many as fit"
    )
    parser.add_argument("--port", type=int, help="serve: of the first server, the others follow; default: free ones")
    parser.add_argument(
        "--out", type=user_path, help="folder of the results; default: bench-TARGET-MODE-DATA in this one"
    )
    return parser


def _load(text: str) -> Load:
    try:
        return parse_load(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, and not like 1-32-1") from None


def _in_order(loads: Sequence[Load]) -> tuple[Load, ...]:
    """Each once: the numbers, then the ramps."""
    return tuple(sorted(set(loads), key=lambda load: (isinstance(load, Ramp), most_at_a_time([load]))))


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    own, passed_on = divided(given)
    arguments = build_parser().parse_args(own)
    try:
        return _bench(arguments, passed_on, given)
    except ValueError as error:  # of options, prompts, the target, the drafter, the folder of results
        print(error, file=sys.stderr)
    except OSError as error:
        print(sentence(error), file=sys.stderr)
    return 1


def _bench(arguments: argparse.Namespace, options: Sequence[str], given: Sequence[str]) -> int:
    from redrafter_vllm.bench.rounds import Results

    plan = _plan(arguments, options)
    settings = plan.settings
    out = arguments.out or Path(f"bench-{Path(settings.target).name}-{settings.mode}-{Path(settings.data).stem}")
    check_writable(out)
    prompts = _prompts(plan)
    results = Results(out)
    run = {
        "settings": settings.described(),
        **_machine(plan),
    }
    done = results.begin(run)
    run |= {
        "date": date.today().isoformat(),
        "command": shlex.join([*program("redrafter_vllm.cli.bench").split(), *given]),
    }
    return _run(plan, prompts, results, run, done)


def _plan(arguments: argparse.Namespace, options: Sequence[str]) -> "Plan":
    """Checks everything that is known before an engine starts.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    from redrafter_vllm.bench.configurations import compared
    from redrafter_vllm.bench.memory import gpus
    from redrafter_vllm.bench.prompts import sources
    from redrafter_vllm.bench.settings import Plan, check_ports, target_folder

    folder, devices = target_folder(arguments.target), tuple(gpus())
    settings = Settings(
        mode=arguments.mode,
        target=arguments.target,
        configurations=compared(
            arguments.target,
            arguments.drafter,
            arguments.config,
            has_gpu=bool(devices),
            redrafter=not arguments.without_redrafter,
        ),
        data=arguments.data,
        concurrency=_in_order(arguments.concurrency),
        requests=arguments.requests,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
        rounds=arguments.rounds,
        temperature=arguments.temperature,
        ignore_eos=arguments.ignore_eos,
        one_at_a_time=arguments.one_at_a_time,
        port=arguments.port,
        options=tuple(options),
    )
    sources(settings.data)
    if settings.port is not None:
        check_ports(settings.port, len(settings.configurations))
    plan = Plan(settings, folder, devices)
    side_by_side = plan.together
    number = len(settings.configurations)
    needs = f"about {plan.bytes_each / 2**30:.1f} GiB each, {plan.free / 2**30:.1f} GiB free"
    print(f"{number} engines {'side by side' if side_by_side else 'one at a time'}: {needs}", flush=True)
    return plan


def _prompts(plan: "Plan") -> Any:
    from transformers import AutoTokenizer

    from redrafter_vllm.bench.prompts import make_prompts

    settings = plan.settings
    tokenizer = AutoTokenizer.from_pretrained(plan.folder)
    return make_prompts(settings.data, tokenizer, settings.prompts, settings.prompt_tokens)


def _machine(plan: "Plan") -> dict[str, Any]:
    from redrafter_vllm.bench.machine import hardware, versions

    if plan.has_gpu:
        names = [gpu.name for gpu in plan.gpus]
        described = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        return {
            "hardware": described,
            "versions": versions(),
            "memory": "what came into use on the device with the start",
        }
    return {
        "hardware": hardware("cpu")[1],
        "versions": versions(),
        "memory": "resident memory of an engine's processes, each at its peak",
    }


def _run(plan: "Plan", prompts: Any, results: "Results", run: dict[str, Any], done: int) -> int:
    from tqdm import tqdm

    from redrafter_vllm.bench.child import ChildError, summary
    from redrafter_vllm.bench.fleet import Fleet, start_offline
    from redrafter_vllm.bench.rounds import requests_left, run_rounds
    from redrafter_vllm.bench.servers import start_server

    settings, status = plan.settings, 0
    if done:
        print(f"{results.folder} holds {min(done, settings.rounds)} of {settings.rounds} rounds, which are kept")
    if done < settings.rounds:
        start = start_offline if settings.mode == "offline" else start_server
        bar = tqdm(total=requests_left(settings, done), unit="request", dynamic_ncols=True)
        try:
            with bar, Fleet(plan, prompts, results.folder / "logs", start, lambda text: _tell(bar, text)) as fleet:
                run_rounds(settings, fleet, results, done, bar)
        except ChildError as error:
            print(summary(error), file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            status = 130
    if status:
        kept = len(results.rounds())
        print(
            f"{kept} of {settings.rounds} rounds are in {results.folder}: the same command continues", file=sys.stderr
        )
    _report(results, run, settings.configurations[0].name)
    return status


def _tell(bar: Any, text: str) -> None:
    """Says beside the bar what is done; outside of a terminal only when the bar moves, as every line would stay."""
    bar.set_description(text, refresh=sys.stderr.isatty())


def _report(results: "Results", run: dict[str, Any], plain: str) -> None:
    """Shows and stores the figures of the rounds that have ended, if there are some."""
    from rich.console import Console

    from redrafter_vllm.bench import report as reports
    from redrafter_vllm.bench.figures import rows

    rounds = results.rounds()
    if not rounds:
        return
    report = reports.Report(run, rows(rounds, plain), len(rounds))
    console = Console()
    for grid in reports.grids(report):
        console.print(grid.rich())
    for line in reports.remarks(report):
        console.print(line, highlight=False)
    written = reports.store(report, results.folder)
    for path in written:
        print(path)
    if not any(path.suffix == ".png" for path in written):
        print("no plots: matplotlib is not installed (pip install matplotlib)")


if __name__ == "__main__":
    sys.exit(main())
