# SPDX-License-Identifier: Apache-2.0
"""One flat set of keys, as flags and as YAML, built from the dataclasses that hold them."""

import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from redrafter_training.config.job import Job, check_rows
from redrafter_training.config.parser import KeysParser
from redrafter_training.config.recipe import RECIPES, DistillConfig
from redrafter_vllm.utils.messages import one_line, sentence
from redrafter_vllm.utils.program import program

Keys = TypeVar("Keys")

DEFAULT_RECIPE = "standard"
BLOCKS = "num_draft_layers"
SHAPE = ("exit_dim", BLOCKS, "rnn", "draft_vocab_size")  # keys of a drafter's shape
FLAT = frozenset({"budget"})  # fields whose keys have no prefix


def attribute_help(holder: type) -> dict[str, str]:
    """The entries of the `Attributes:` sections in the docstrings of a class and of those it inherits, by name.

    docstring-parser, which jsonargparse uses in `add_class_arguments`, would save two lines for one more dependency.
    """
    found: dict[str, str] = {}
    for parent in reversed(holder.__mro__[:-1]):
        _, _, section = (inspect.getdoc(parent) or "").partition("Attributes:\n")
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def build_parser(recipe: str = DEFAULT_RECIPE) -> ArgumentParser:
    """All flags, with the recipe's values as defaults."""
    parser = _empty_parser(
        "redrafter_training", "Train a drafter for a frozen target and put it where serving finds it."
    )
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        default=DEFAULT_RECIPE,
        help="named defaults of everything under `recipe`: short trains a minute on two cores, long half an hour, "
        "standard until max_steps",
    )
    _add(parser, "job", Job, None)
    _add(parser, "recipe", DistillConfig, RECIPES[recipe])
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[Job, DistillConfig, str, str]:
    """(job, recipe, the recipe's name, all keys as YAML). Exits with a message and code 2 for invalid keys."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    recipe = parser.parse_args(argv).recipe
    if recipe is None:
        parser.error("recipe must not be null")
    parser = build_parser(recipe)
    given = parser.parse_args(argv)
    chosen = parser.parse_args(argv, defaults=False)
    if chosen.get("epochs") is not None and "max_steps" not in chosen:
        given.max_steps = None  # in place of the recipe's number
    try:
        job, config = _build(Job, given), _build(DistillConfig, given)
        check_rows(job, config)
        if job.init_from is not None:
            config = keep_shape(job.init_from, config, chosen)
            given.update(_shape_of(config))
        if job.hidden_cache is not None:
            config = replace(config, fixed_windows=True)
        lasting = _lasting(given, job, config)
    except ValueError as problem:
        parser.error(str(problem))
    except OSError as problem:  # of names longer than a path may be, for instance
        parser.error(one_line(sentence(problem)))
    return job, config, recipe, parser.dump(lasting, skip_none=False)


def _lasting(given: Namespace, job: Job, config: DistillConfig) -> Namespace:
    """The keys that repeat a run from any folder: absolute paths, and without what concerns a single start."""
    lasting = given.clone()
    lasting.resume, lasting.overwrite = True, False
    absolute = job.absolute()
    for key in ("target", "data", "chat_template", "out", "run_dir", "init_from", "hidden_cache"):
        if getattr(job, key) is not None:
            lasting[key] = getattr(absolute, key)
    lasting["responses.folders"] = config.absolute().responses.folders
    return lasting


def keep_shape(folder: Path, config: DistillConfig, given: Namespace) -> DistillConfig:
    """`config` with the shape of the drafter in `folder`, which a training that starts from it keeps.

    Only residual blocks may be added; see `redrafter_training.trainer.loop.add_blocks`.

    Args:
        given: the keys from flags and file, without the recipe's defaults.

    Raises:
        CheckpointError: the folder holds no drafter.
        ValueError: one of the given keys has another value than the drafter, or asks for fewer blocks.
    """
    from redrafter_vllm.checkpoint.io import check_checkpoint  # imports torch, for which --help must not wait

    shape = check_checkpoint(folder)
    if (blocks := given.get(BLOCKS)) is not None and blocks > shape.num_draft_layers:
        shape = replace(shape, num_draft_layers=blocks)
    for key in SHAPE:
        wanted, kept = given.get(key), getattr(shape, key)
        if wanted is not None and wanted != kept:
            limit = "; residual blocks can be added, but not removed" if key == BLOCKS else ""
            raise ValueError(
                f"{key} is {wanted}, but the drafter in {folder} (--init-from) has {kept} and keeps its shape{limit}: "
                "omit the key, or train a new drafter"
            )
    return replace(config, **{key: getattr(shape, key) for key in SHAPE})


def _shape_of(config: DistillConfig) -> Namespace:
    return Namespace({key: getattr(config, key) for key in SHAPE})


def keys_parser(holder: type, module: str, description: str) -> ArgumentParser:
    """All keys of `holder` as flags, for the command of a module without recipes."""
    parser = _empty_parser(module, description)
    _add(parser, "keys", holder, None)
    return parser


def parse_keys(holder: type[Keys], module: str, description: str, argv: Sequence[str] | None = None) -> Keys:
    """The keys of `holder`, for a command without recipes. Exits with a message and code 2 for invalid keys."""
    parser = keys_parser(holder, module, description)
    given = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        return _build(holder, given)
    except ValueError as problem:
        parser.error(str(problem))
    except OSError as problem:
        parser.error(one_line(sentence(problem)))


def as_flags(holders: Sequence[type], keys: Mapping[str, Any]) -> list[str]:
    """The arguments that mean the same as `keys` of `holders` in a YAML file; unknown ones become unknown flags."""
    switches = {name for holder in holders for name, default in _flat_defaults(holder) if default is False}
    groups = {name.rpartition(".")[0] for holder in holders for name, _ in _flat_defaults(holder)}
    flags: list[str] = []

    def add(prefix: str, given: Mapping[str, Any]) -> None:
        for key, value in given.items():
            name = f"{prefix}{key}"
            flag = f"--{name}".replace("_", "-")
            if name in groups and isinstance(value, Mapping):
                add(f"{name}.", value)
            elif name in switches and isinstance(value, bool):
                flags.extend([flag] * value)
            else:
                flags.extend([flag, _argument(value)])

    add("", keys)
    return flags


def _argument(value: Any) -> str:
    """A value as one argument."""
    if isinstance(value, str | Path):
        return str(value)
    return ".inf" if value == math.inf else json.dumps(value)


def _flat_defaults(holder: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The name of each flag, without dashes, and its default."""
    for entry, kind, within in _fields(holder, prefix):
        if _is_nested(kind):
            yield from _flat_defaults(kind, within)
        else:
            yield f"{prefix}{entry.name}", _default(entry, None)


def _empty_parser(module: str, description: str) -> ArgumentParser:
    parser = KeysParser(
        prog=program(module),
        description=description,
        epilog="A YAML file given with --config holds the same keys, with underscores; flags after it override it.",
    )
    parser.add_argument("--config", action="config", help="YAML file of the keys below")
    return parser


def _default(entry: Field, defaults: Any) -> Any:
    if defaults is not None:
        return getattr(defaults, entry.name)
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _fields(holder: type, prefix: str) -> Iterator[tuple[Field, Any, str]]:
    """Each field with its type and the prefix of its key, or of the keys of the fields inside it."""
    hints = get_type_hints(holder)
    # Inherited keys behind the class's own ones.
    for entry in sorted(fields(holder), key=lambda entry: bool(entry.kw_only)):
        nested = _is_nested(hints[entry.name]) and entry.name not in FLAT
        yield entry, hints[entry.name], f"{prefix}{entry.name}." if nested else prefix


def _is_nested(kind: Any) -> TypeGuard[type]:
    return is_dataclass(kind)


def _build(holder: type, given: Namespace, prefix: str = "") -> Any:
    values = {}
    for entry, kind, within in _fields(holder, prefix):
        if not _is_nested(kind):
            values[entry.name] = _checked(prefix + entry.name, kind, given[prefix + entry.name])
            continue
        group = given if within == prefix else given[prefix + entry.name]
        if not isinstance(group, Namespace):
            raise ValueError(f"{prefix}{entry.name} holds keys, as in {entry.name}: {{key: value}}, not {group!r}")
        values[entry.name] = _build(kind, given, within)
    return holder(**values)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value`, checked where the library does not: it accepts null for any key, and any value for boolean flags."""
    if value is None and type(None) not in get_args(kind):
        raise ValueError(f"{name} must not be null")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def _add(parser: ArgumentParser, title: str, holder: type, defaults: Any, prefix: str = "") -> None:
    """A group with a flag for each key.

    jsonargparse's `add_class_arguments` would make flags with underscores, and `--overwrite` would need a value.
    """
    group = parser.add_argument_group(title)
    described = attribute_help(holder)
    for entry, kind, within in _fields(holder, prefix):
        if _is_nested(kind):
            _add(parser, f"{title}: {entry.name}", kind, getattr(defaults, entry.name), within)
            continue
        options: dict[str, Any] = {"help": described.get(entry.name, "")}
        default = _default(entry, defaults)
        if default is False:
            options["action"] = "store_true"
        else:
            options |= {"type": kind} | ({"required": True} if default is MISSING else {"default": default})
        group.add_argument(f"--{within}{entry.name}".replace("_", "-"), **options)
