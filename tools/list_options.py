#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists every option, from the classes and parsers that hold them, as docs/reference/options.md.

Run it as `python -m tools.list_options`.
"""

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from redrafter_training.cli import attribute_help
from redrafter_training.config.job import Job
from redrafter_training.config.pipeline import Pipeline
from redrafter_training.config.recipe import RECIPES, Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.responses.config import PromptJob, ResponseJob
from redrafter_vllm.cli.commands import COMMANDS
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.request_settings import RequestSettings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "reference" / "options.md"

Row = tuple[str, ...]

INTRODUCTION = """\
# Options

Made by `python -m tools.list_options` from the classes and parsers that hold the options;
`tests/test_options_reference.py` checks that this file is current. Every command shows its own with `--help`."""

SERVING = """\
Keys of `--speculative-config` and of `LLM(speculative_config=...)`
([config.py](../../redrafter_vllm/config.py)). An unknown key is an error. How to use them:
[serving.md](../serving.md); which values: [choosing.md](../choosing.md); names of other implementations:
[migration.md](../migration.md)."""

# Of vLLM's own options those that have a meaning here; they are no fields of a class of ours.
OF_VLLM: Sequence[Row] = (
    ("`method`", "`redrafter`", "", "may be left out when `model` is the word `redrafter` or a drafter's checkpoint"),
    ("`model`", "word, directory, hub id", "`redrafter`", "the drafter; the word looks it up"),
    (
        "`num_speculative_tokens_per_batch_size`",
        "list of [first, last, nodes]",
        "none",
        "vLLM's schedule of node budgets by batch size ([load](../serving.md#load))",
    ),
)

REQUEST = """\
The field `redrafter` of a request's body, or of `SamplingParams(extra_args=...)`
([settings of one request](../serving.md#settings-of-one-request))."""

TRAINING = """\
Flags of `redrafter train`, and with underscores keys of a YAML file for `--config`. Defaults of the recipe are those of
`standard`; `--recipe` takes other ones ([below](#recipes)). What they do: [training.md](../training.md)."""

STEPS = """\
Keys of a recipe for `redrafter pipeline`
([all steps in one command](../training.md#all-steps-in-one-command))."""

BY_CLASSES = ("train", "respond", "invent", "pipeline")


def document() -> str:
    """The text of docs/reference/options.md."""
    drafting = [*OF_VLLM, *class_rows(DraftingConfig, DraftingConfig(), flags=False)]
    standard = RECIPES["standard"]
    parts = [
        INTRODUCTION,
        "## Drafting",
        SERVING,
        table(("option", "values", "default", "meaning"), drafting),
        "## One request",
        REQUEST,
        table(("setting", "values", "default", "meaning"), class_rows(RequestSettings, RequestSettings(), flags=False)),
        "## Training",
        TRAINING,
        "### The job",
        flag_table(Job),
        "### The recipe",
        flag_table(Budget, standard.budget),
        flag_table(DistillConfig, standard, without=("budget", "loss", "responses")),
        "### The loss",
        paragraph(LossConfig),
        flag_table(LossConfig, standard.loss, prefix="loss."),
        "### Responses within a training",
        flag_table(ResponseConfig, standard.responses, prefix="responses."),
        "### Recipes",
        table(("flag", *(f"`{name}`" for name in RECIPES)), list(recipe_rows())),
        "## Responses before a training",
        "Flags of `redrafter respond` ([response generation](../training.md#response-generation)).",
        flag_table(ResponseJob),
        "## Prompts",
        "Flags of `redrafter invent`.",
        flag_table(PromptJob),
        "## All steps",
        STEPS,
        flag_table(Pipeline),
        "## Other commands",
    ]
    for name, command in COMMANDS.items():
        if name not in BY_CLASSES:
            parser = command.load().build_parser()
            rows = list(parser_rows(parser))
            parts += [f"### {name}", f"`redrafter {name}`: {command.summary}."]
            parts.append(table(("argument", "values", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def flag_table(holder: type, defaults: Any = None, *, prefix: str = "", without: Sequence[str] = ()) -> str:
    rows = class_rows(holder, defaults, prefix=prefix, without=without)
    return table(("flag", "values", "default", "meaning"), rows)


def class_rows(
    holder: type, defaults: Any = None, *, prefix: str = "", without: Sequence[str] = (), flags: bool = True
) -> list[Row]:
    """A row for each field of a dataclass: its name, type, default and entry under `Attributes:`.

    Raises ValueError for a field that the docstring does not describe.
    """
    described, hints = attribute_help(holder), get_type_hints(holder)
    rows: list[Row] = []
    for entry in fields(holder):
        if entry.name in without:
            continue
        if not described.get(entry.name):
            raise ValueError(f"{holder.__name__}.{entry.name} is not described under Attributes: of its class")
        name = f"--{prefix}{entry.name}".replace("_", "-") if flags else entry.name
        given = default(entry, defaults)
        values = ("switch", "") if flags and given is False else (kind(hints[entry.name]), value(given))
        rows.append((f"`{name}`", *values, prose(described[entry.name])))
    return rows


def parser_rows(parser: argparse.ArgumentParser) -> Iterator[Row]:
    """A row for each argument of a command except `--help`."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        values = ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else ""
        if action.nargs == 0:
            yield f"`{name}`", "switch", "", prose(action.help or "")
            continue
        yield f"`{name}`", values, "required" if action.required else value(action.default), prose(action.help or "")


def recipe_rows() -> Iterator[Row]:
    """The flags in which the named recipes differ."""
    for prefix, part in (("", "budget"), ("", None), ("loss.", "loss"), ("responses.", "responses")):
        holders = [recipe if part is None else getattr(recipe, part) for recipe in RECIPES.values()]
        for entry in fields(holders[0]):
            values = [getattr(holder, entry.name) for holder in holders]
            if entry.name not in ("budget", "loss", "responses") and any(other != values[0] for other in values):
                yield (f"`--{prefix}{entry.name}`".replace("_", "-"), *map(value, values))


def default(entry: Field, defaults: Any) -> Any:
    """The field's default; `MISSING` where it must be given."""
    if defaults is not None:
        return getattr(defaults, entry.name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def kind(hint: Any) -> str:
    """The values of a type, in a few words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(kind(part) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return (
            f"list of {plural(parts[0])}" if parts[-1] is Ellipsis else f"[{', '.join(kind(part) for part in parts)}]"
        )
    if get_origin(hint) is dict:
        return "mapping"
    return {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}[hint]


def plural(hint: type) -> str:
    return {int: "integers", float: "numbers", str: "texts"}[hint]


def value(given: Any) -> str:
    """A default as it is typed."""
    if given is MISSING:
        return "required"
    if given is None or given == {}:
        return "none"
    if isinstance(given, bool):
        return f"`{str(given).lower()}`"
    if given == math.inf:
        return "no limit"
    if isinstance(given, tuple):
        return f"`[{', '.join(map(str, given))}]`"
    return f"`{given}`"


def paragraph(holder: type) -> str:
    """What a class's docstring says before its attributes."""
    text = (holder.__doc__ or "").partition("Attributes:")[0]
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(lines).strip().replace("*", r"\*")


def prose(text: str) -> str:
    """A description as a cell of a table: on one line, documents as links."""
    text = (
        " ".join(text.split())
        .replace(str(Path.home()), "~")
        .replace("%%", "%")
        .replace("|", r"\|")
        .replace("<", "&lt;")
        .replace("*", r"\*")
    )
    return re.sub(r"\bdocs/([\w/]+\.md)", r"[\1](../\1)", text)


def table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    head, *body = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, f"|{'---|' * len(heads)}", *body])


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
