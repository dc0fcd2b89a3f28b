# SPDX-License-Identifier: Apache-2.0
"""Every link, anchor, command and path of the documents leads somewhere."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from redrafter_vllm.cli.commands import COMMANDS
from tests.paths import ROOT

FOLDERS = ("docs", "examples", "tests", "tools", "benchmarks", "training")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))])
# Dated entries keep the names of their day.
HISTORY = (ROOT / "docs" / "dev" / "log.md", ROOT / "CHANGELOG.md")
CURRENT = [path for path in DOCUMENTS if path not in HISTORY]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"python3? -m ([\w.]+)")
SCRIPT = re.compile(r"\bredrafter-[a-z0-9-]+\b")
SUBCOMMAND = re.compile(r"(?:^|`|<\()redrafter ([A-Za-z][\w-]*)", re.MULTILINE)
MAKE = re.compile(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z]+)", re.MULTILINE)
DOTTED = re.compile(r"\bredrafter_(?:vllm|training)(?:\.\w+)+")
REPOSITORY_PATH = re.compile(r"(?:deploy|docs|tests|tools|benchmarks|training|redrafter_vllm)/[\w./-]*")


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def prose(path: Path) -> str:
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def code(path: Path) -> str:
    """Fenced blocks and inline code, the latter with one backtick before it."""
    text = path.read_text(encoding="utf-8")
    return "\n".join([*FENCED.findall(text), *("`" + span for span in INLINE.findall(FENCED.sub("", text)))])


def anchors(path: Path) -> set[str]:
    """As GitHub derives them from headings: lower case, punctuation removed, spaces as hyphens."""
    headings = re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_links_resolve(document: Path) -> None:
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        place = (document.parent / name).resolve() if name else document
        assert place.exists(), f"{link} leads nowhere"
        assert place.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert not anchor or anchor in anchors(place), f"{link}: no such heading"


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_modules_of_commands_can_be_run(document: Path) -> None:
    for name in MODULE.findall(document.read_text(encoding="utf-8")):
        spec = find_spec(name)
        assert spec is not None, f"python -m {name}: no such module"
        assert spec.submodule_search_locations is None or find_spec(f"{name}.__main__"), f"python -m {name}: no command"


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_scripts_and_distributions_are_declared(document: Path) -> None:
    names = {"redrafter-slim"}  # a folder of the committed target
    for file in ("pyproject.toml", "training/pyproject.toml", "tools/cpu_support/pyproject.toml"):
        project = tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["project"]
        names |= {project["name"], *project.get("scripts", {})}
    for image in (ROOT / "deploy").glob("Dockerfile*"):
        names |= set(re.findall(r"docker build .* -t (\S+)", image.read_text(encoding="utf-8")))
    assert set(SCRIPT.findall(code(document))) <= names


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_subcommands_exist(document: Path) -> None:
    assert set(SUBCOMMAND.findall(code(document))) <= {*COMMANDS, "COMMAND"}


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(MAKE.findall(code(document))) <= targets


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_paths_exist(document: Path) -> None:
    for span in INLINE.findall(prose(document)):
        if REPOSITORY_PATH.fullmatch(path := span.partition("::")[0]):
            assert (ROOT / path).exists(), f"{path} does not exist"


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_dotted_names_exist(document: Path) -> None:
    for name in DOTTED.findall(code(document)):
        place = ROOT if name.startswith("redrafter_vllm") else ROOT / "training"
        for index, part in enumerate(name.split(".")):
            if (place / part).is_dir() or (place / part).with_suffix(".py").is_file():
                place /= part
                continue
            module = place.with_suffix(".py")
            source = module.read_text(encoding="utf-8") if module.is_file() else ""
            assert re.search(rf"^(?:class|def) {part}\b|^{part}\b", source, re.MULTILINE), f"{name}: no {part}"
            assert index == name.count("."), f"{name} names more than a module and an attribute"


@pytest.mark.parametrize("document", CURRENT, ids=ids(CURRENT))
def test_lists_are_lists_in_the_site(document: Path) -> None:
    """There a list begins behind an empty line, and what is nested in an item is indented by four spaces."""
    before = ""
    front_matter = re.match(r"---\n.*?\n---\n", text := prose(document), re.DOTALL)
    for line in text[front_matter.end() if front_matter else 0 :].splitlines():
        if item := re.match(r"( *)(?:[-*]|\d+\.) ", line):
            assert len(item[1]) % 4 == 0, f"{line}: indent by four spaces"
            starts = before and not before.startswith(" ") and not re.match(r"(?:[-*]|\d+\.) ", before)
            assert not starts, f"{line}: an empty line belongs before the list"
        before = line


def test_documents_named_in_sources_exist() -> None:
    for folder in ("redrafter_vllm", *FOLDERS):
        for source in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\bdocs/[\w/]+\.md\b", source.read_text(encoding="utf-8")):
                assert (ROOT / name).is_file(), f"{source.relative_to(ROOT)} names {name}, which does not exist"
