# SPDX-License-Identifier: Apache-2.0
"""Every command block of README and docs/: run, shown by a test, or marked with what a test cannot have."""

import ast
import contextlib
import io
import re
import runpy
import sys
import unittest.mock
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest

from redrafter_vllm.cli.main import main
from tests.document_blocks import ALL, NEEDS, PAGES, README, RUNNABLE, Block, blocks
from tests.paths import ROOT

FLAG = re.compile(r"--[a-zA-Z][\w.-]*")
OURS = ("redrafter_vllm", "redrafter_training", "benchmarks", "tools")
OF_VLLM = ("serve", "run-batch")
RUN = [block for block in ALL if block.said == "run"]


def ids(found: list[Block]) -> list[str]:
    return [block.place for block in found]


@pytest.mark.parametrize("block", ALL, ids=ids(ALL))
def test_every_block_says_how_it_is_tested(block: Block) -> None:
    assert block.kind in ("run", "test", "needs", "excerpt"), (
        f"{block.place} has no comment before it: see tests/document_blocks.py for what to write there"
    )
    if block.kind == "needs":
        assert {what.strip() for what in block.detail.split(",")} <= NEEDS
    if block.kind == "run":
        assert block.detail in ("", "engine")
    if block.kind == "test":
        file, _, function = block.detail.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_comments_of_the_readme_are_used() -> None:
    texts = [block.text for block in blocks(PAGES[0])]
    assert all(any(text.startswith(start) for text in texts) for start in README)


def test_comments_stand_before_blocks() -> None:
    """A comment that is separated from its block would say nothing of it."""
    written = sum(
        len(re.findall(r"^<!-- (?:run|test|needs|excerpt)\b", page.read_text(), re.MULTILINE)) for page in PAGES
    )
    assert written == sum(
        len(
            re.findall(
                r"^<!-- (?:run|test|needs|excerpt)\b[^\n]*-->\n```(?:bash|python)?\n", page.read_text(), re.MULTILINE
            )
        )
        for page in PAGES
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # modules of other tests
@pytest.mark.parametrize("block", ALL, ids=ids(ALL))
def test_flags_exist(block: Block) -> None:
    for command in block.commands:
        program = program_of(command)
        given = {flag for word in command for flag in FLAG.findall(word.partition("=")[0]) if word.startswith("--")}
        if program is not None and given:
            known = set(FLAG.findall(help_of(program)))
            assert {flag.replace("_", "-") for flag in given} <= known, f"{' '.join(program)} has no such flag"


@pytest.mark.parametrize("block", ALL, ids=ids(ALL))
def test_paths_exist(block: Block) -> None:
    for command in block.commands:
        for word in command:
            if re.match(r"(?:tests|tools|benchmarks|docs)/", word):
                assert (ROOT / word.partition("::")[0]).exists(), f"{word} does not exist"


def program_of(command: list[str]) -> tuple[str, ...] | None:
    """Our command or module, or vLLM's subcommand; None for other programs."""
    if command[0] == "redrafter" and len(command) > 1:
        return ("redrafter", command[1])
    if command[0] == "vllm" and command[1] in OF_VLLM:
        return ("vllm", command[1])
    if command[:2] == ["python", "-m"] and command[2].partition(".")[0] in OURS:
        return ("python", command[2])
    return None


@lru_cache
def help_of(program: tuple[str, ...]) -> str:
    """What it prints with --help, in this process."""
    kind, name = program
    if kind == "vllm":
        return vllm_help(name)
    printed = io.StringIO()
    with (
        unittest.mock.patch.object(sys, "argv", [name, "--help"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main(sys.argv) if kind == "redrafter" else runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    return printed.getvalue()


def vllm_help(command: str) -> str:
    """The flags of one of vLLM's subcommands."""
    from vllm.plugins import load_general_plugins
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    load_general_plugins()
    module = import_module(f"vllm.entrypoints.cli.{command.replace('-', '_')}")
    (subcommand,) = module.cmd_init()
    parser = subcommand.subparser_init(FlexibleArgumentParser().add_subparsers())
    return " ".join(flag for action in parser._actions for flag in action.option_strings)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run commands in, which has the repository's `tests` as a clone has."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    return tmp_path


@pytest.mark.slow
@pytest.mark.process  # the doctor asks other programs
@pytest.mark.parametrize("block", RUN, ids=ids(RUN))
def test_commands_run(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert block.language in RUNNABLE and block.commands
    for command in block.commands:
        assert command[0] == "redrafter", "other commands need a test of their own"
        code = main(command[1:])
        printed = capsys.readouterr()
        assert code in (0, None), printed.err
        assert printed.out
