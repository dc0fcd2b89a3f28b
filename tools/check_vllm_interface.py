# SPDX-License-Identifier: Apache-2.0
"""Which names of vLLM that redrafter-vllm uses a version still has: `python -m tools.check_vllm_interface [PLACE]`.

PLACE is `installed` (the default), a wheel, or a directory with vLLM's sources. No code of vLLM is run. A name that is
there, with the same parameters, may still have another meaning: docs/design/vllm_interface.md lists what to read.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from redrafter_vllm.integration.versions import UnsupportedVllmError, check_vllm_version
from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from tools.vllm_source import Fact, Source, open_tree

DOCUMENT = Path(__file__).parents[1] / "docs" / "design" / "vllm_interface.md"
TABLE_BEGINS = "<!-- python -m tools.check_vllm_interface --document: begins -->"
TABLE_ENDS = "<!-- ends -->"


def problem(name: VllmName, fact: Fact) -> str | None:
    """What has changed about a name; None where it is as listed."""
    if fact.kind == "missing":
        return "is gone"
    if name.use is Use.USED:
        gone = [attribute for attribute in name.attributes.split() if attribute not in fact.attributes]
        return f"has no {', '.join(gone)}" if gone else None
    if fact.kind != "function":
        return f"is a {fact.kind} now"
    if name.use is Use.CALLED:
        return _problem_of_call(name.parameters, fact.parameters)
    found = " ".join(parameter.rstrip("=") for parameter in fact.parameters)
    return None if found == name.parameters else f"takes ({found}), not ({name.parameters})"


def _problem_of_call(passed: str, parameters: Sequence[str]) -> str | None:
    by_position, _, by_name = (part.split() for part in passed.partition("*"))
    taken = [name for name in parameters if name not in ("self", "cls")]
    names = [name.rstrip("=") for name in taken]
    if names[: len(by_position)] != by_position:
        return f"takes ({' '.join(names)}), and is called with ({' '.join(by_position)})"
    if unknown := [name for name in by_name if name not in names]:
        return f"takes no {', '.join(unknown)}"
    rest = taken[len(by_position) :]
    if missing := [name for name in rest if not name.endswith("=") and name not in ("*", *by_name) and name[0] != "*"]:
        return f"also needs {', '.join(missing)}"
    return None


def facts_of(source: Source) -> dict[str, Fact]:
    """The fact of every name, by its target."""
    return {name.target: source.fact(name.target) for name in VLLM_NAMES}


def save(facts: Mapping[str, Fact], version: str, path: Path) -> None:
    """Write facts as JSON, for tests that have no sources of that version."""
    stored = {
        target: {"kind": fact.kind, "parameters": list(fact.parameters), "attributes": sorted(fact.attributes)}
        for target, fact in sorted(facts.items())
    }
    lines = ",\n".join(f"{json.dumps(target)}: {json.dumps(fact)}" for target, fact in stored.items())
    path.write_text(f'{{"vllm": {json.dumps(version)}, "facts": {{\n{lines}\n}}}}\n')


def load(path: Path) -> tuple[str, dict[str, Fact]]:
    """The version and the facts that `save` wrote."""
    stored = json.loads(path.read_text())
    facts = {
        target: Fact(fact["kind"], tuple(fact["parameters"]), frozenset(fact["attributes"]))
        for target, fact in stored["facts"].items()
    }
    return stored["vllm"], facts


def with_table(text: str) -> str:
    """The document with its table of all names written again."""
    before, _, rest = text.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not ends:
        raise ValueError(f"the document has no {TABLE_BEGINS} … {TABLE_ENDS}")
    rows = ["| use | name | parameters, or attributes that are read |", "|---|---|---|"]
    for name in VLLM_NAMES:
        words = (name.parameters or name.attributes).split()
        details = " ".join(f"`{word}`" if word != "*" else "by name:" for word in words)
        rows.append(f"| {name.use} | `{name.module}.{name.path}` | {details} |")
    return "\n".join([before + TABLE_BEGINS, "", *rows, "", TABLE_ENDS + after])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.check_vllm_interface", description=__doc__)
    parser.add_argument("place", nargs="?", default="installed", help="installed, a wheel or a directory")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also store what was found, for the tests")
    parser.add_argument("--document", action="store_true", help="only write the table in docs/design/vllm_interface.md")
    options = parser.parse_args(arguments)
    if options.document:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
        return 0
    try:
        source = Source(open_tree(options.place))
    except FileNotFoundError as error:
        parser.error(str(error))
    version, facts = source.version(), facts_of(source)
    broken = 0
    for name in VLLM_NAMES:
        why = problem(name, facts[name.target])
        broken += why is not None
        state, explanation = ("holds", "") if why is None else ("CHANGED", f": {why}")
        print(f"{state:8}{name.use:11}{name.target}{explanation}")
    print(f"vLLM {version or 'of unknown version'}: {len(VLLM_NAMES) - broken} of {len(VLLM_NAMES)} names hold")
    try:
        check_vllm_version(version)
    except UnsupportedVllmError as error:
        print(error)
    if options.write:
        save(facts, version, options.write)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
