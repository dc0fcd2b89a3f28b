# SPDX-License-Identifier: Apache-2.0
"""What tests and documents keep of vLLM's interface: `python -m tools.check_vllm_interface`.

`--write FILE` stores what a version's sources say, for tests that have none; `--document` writes the table of all names
in docs/design/vllm_interface.md. `redrafter doctor --vllm PLACE` reports on a version.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from redrafter_vllm.integration.vllm_interface.check import facts_of
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from redrafter_vllm.integration.vllm_interface.source import INSTALLED, Fact, Source, open_tree

DOCUMENT = Path(__file__).parents[1] / "docs" / "design" / "vllm_interface.md"
TABLE_BEGINS = "<!-- python -m tools.check_vllm_interface --document: begins -->"
TABLE_ENDS = "<!-- ends -->"


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
    parser.add_argument("place", nargs="?", default=INSTALLED, help="with --write: installed, a wheel or a directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE", help="store what the sources say")
    what.add_argument("--document", action="store_true", help="write the table in docs/design/vllm_interface.md")
    options = parser.parse_args(arguments)
    if options.document:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
        return 0
    try:
        source = Source(open_tree(options.place))
    except FileNotFoundError as error:
        parser.error(str(error))
    save(facts_of(source), source.version(), options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
