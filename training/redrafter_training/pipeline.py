# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.pipeline RECIPE --out DIR`: from the target to the measured drafter, in one command.

RECIPE is a YAML file, or the name of one in `redrafter_training/recipes`. Its sections hold the keys of the commands
that are run: invent, respond, train, evaluate. All are checked before the first of them starts. The same command
continues after an interruption.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from redrafter_training import evaluate, invent, respond, smollm2
from redrafter_training.cli import as_flags, keys_parser, parse, parse_keys
from redrafter_training.config.job import Job
from redrafter_training.config.pipeline import DRAFTER, EVALUATION, PROMPTS, RESPONSES, Pipeline
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.responses.config import PromptJob, ResponseJob
from redrafter_training.utils.command import run_command

RECIPES = Path(__file__).parent / "recipes"
DESCRIPTION = "Invent prompts, generate the target's responses, train its drafter and measure it, by one file of keys."
MODULE = "redrafter_training.pipeline"


def build_parser() -> ArgumentParser:
    return keys_parser(Pipeline, MODULE, DESCRIPTION)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(recipe_file(argv[0])), *argv[1:]]
    pipeline = parse_keys(Pipeline, MODULE, DESCRIPTION, argv)
    target = pipeline.target or _unexpanded(smollm2.default_folder())
    arguments = section_arguments(pipeline, target)
    parsed = {name: _parsed(name, given) for name, given in arguments.items()}
    return run_command(lambda _: _main(pipeline, target, arguments, parsed), lambda: _continues(pipeline))


def recipe_file(name: str) -> Path:
    """The file `name`, or the recipe of that name in the package."""
    shipped = RECIPES / f"{name}.yaml"
    return shipped if shipped.is_file() and not Path(name).exists() else Path(name)


def section_arguments(pipeline: Pipeline, target: str) -> dict[str, list[str]]:
    """The arguments of each command, by the name of its section, in the order in which they run."""
    out, found = pipeline.out, {}
    data = {"data": str(out / PROMPTS)} if pipeline.invent is not None else {}
    if pipeline.invent is not None:
        found["invent"] = as_flags([PromptJob], {"target": target, "out": out / PROMPTS} | pipeline.invent)
    if pipeline.respond is not None:
        keys = {"target": target, **data, "out": out / RESPONSES}
        found["respond"] = as_flags([ResponseJob], keys | pipeline.respond)
        data = {"data": str(out / RESPONSES)}
    keys = {"target": target, **data, "out": out / DRAFTER} | pipeline.train
    if isinstance(cache := keys.get("hidden_cache"), str):
        keys["hidden_cache"] = out / Path(cache).expanduser()
    found["train"] = as_flags([Job, DistillConfig], keys)
    if pipeline.evaluate is not None:
        keys = {"target": target, "drafter": out / DRAFTER, "card": True} | pipeline.evaluate
        found["evaluate"] = _options(keys)
    return found


def _options(keys: Mapping[str, Any]) -> list[str]:
    """`keys` for argparse, where a list is several arguments."""
    flags: list[str] = []
    for key, value in keys.items():
        if value is None or value is False:
            continue
        flags.append(f"--{key}".replace("_", "-"))
        if value is not True:
            flags += map(str, value if isinstance(value, list) else [value])
    return flags


def _parsed(name: str, arguments: Sequence[str]) -> Any:
    """What the command itself makes of its arguments. Exits with code 2 where it would."""
    parsers: dict[str, Callable[[Sequence[str]], Any]] = {
        "invent": lambda given: parse_keys(PromptJob, invent.MODULE, "", given),
        "respond": lambda given: parse_keys(ResponseJob, respond.MODULE, "", given),
        "train": parse,
        "evaluate": lambda given: evaluate.build_parser().parse_args(given),
    }
    try:
        return parsers[name](arguments)
    except SystemExit:
        print(f"these are keys of the section {name}", file=sys.stderr)
        raise


def _main(pipeline: Pipeline, target: str, arguments: Mapping[str, Sequence[str]], parsed: Mapping[str, Any]) -> int:
    # Imported here, since --help must not wait for torch and transformers.
    from redrafter_training.run.steps import FinishedSteps, Step, run_step, run_steps
    from redrafter_training.utils.folder_lock import locked
    from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
    from redrafter_vllm.utils.paths import check_writable, user_place

    out = pipeline.out
    products: dict[str, tuple[str, Path, tuple[str, ...]]] = {
        "invent": ("redrafter_training.invent", out, (PROMPTS,)),
        "respond": ("redrafter_training.respond", out / RESPONSES, ("regenerated.json", "shard-*.jsonl")),
        "train": ("redrafter_training", out / DRAFTER, ("config.json", "*.safetensors", "training.json")),
        "evaluate": ("redrafter_training.evaluate", out, (EVALUATION,)),
    }
    steps = [Step(name, products[name][0], tuple(given), *products[name][1:]) for name, given in arguments.items()]
    if steps[-1].name == "evaluate":
        steps[-1] = replace(steps[-1], stdout=out / EVALUATION)
    fetch = [] if pipeline.target else [Step("fetch", "redrafter_training.smollm2", (), out)]
    if pipeline.dry_run:
        for step in (*fetch, *steps):
            print(f"# {step.name}\n{step}")
        return 0
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "choose another --out"):
        for step in fetch:
            print(f"1/{len(steps) + 1} {step.name}: {step}", flush=True)
            if code := run_step(step):
                return _failed(code, pipeline)
        _check(parsed)
        finished = FinishedSteps(out, target_fingerprint(user_place(target)))
        if code := run_steps(steps, finished, done=len(fetch)):
            return _failed(code, pipeline)
    print(f"the drafter is in {out / DRAFTER}")
    return 0


def _check(parsed: Mapping[str, Any]) -> None:
    """What the later commands would refuse only after hours of work of the earlier ones.

    Raises:
        ValueError: of the kinds that the commands document.
    """
    from redrafter_training.run.plan import make_plan
    from redrafter_training.run.preflight import check_places, check_room, check_target
    from redrafter_training.run.training import local_device
    from redrafter_training.target.properties import read_facts
    from redrafter_vllm.prompt_sets import load_prompts

    job, config, _, _ = parsed["train"]
    check_places(job)
    check_target(job.target, trust_remote_code=job.trust_remote_code)
    if "respond" in parsed:
        facts = read_facts(job.target, trust_remote_code=job.trust_remote_code)
        facts.check_length(parsed["respond"].window, "respond.window")
    check_room(job, make_plan(job, config, local_device(job)), local_device(job))
    if "evaluate" in parsed and not parsed["evaluate"].prompts.isdigit():
        load_prompts(parsed["evaluate"].prompts)


def _failed(code: int, pipeline: Pipeline) -> int:
    print(_continues(pipeline), file=sys.stderr)
    return code


def _continues(pipeline: Pipeline) -> str:
    return f"the pipeline is not finished: the same command continues with what is in {pipeline.out}"


def _unexpanded(folder: Path) -> str:
    """A folder in the home folder as `~/...`: the command is stored beside what it makes, for other machines."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


if __name__ == "__main__":
    sys.exit(main())
