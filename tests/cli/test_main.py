# SPDX-License-Identifier: Apache-2.0
"""The command `redrafter`: help, dispatch, mistakes, completion."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.cli import commands
from redrafter_vllm.cli.commands import COMMANDS, Command
from redrafter_vllm.cli.main import help_text, main


def test_help_names_all_commands_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[:2].isspace() and line[2] != " "] == list(COMMANDS)


@pytest.mark.process
def test_help_imports_nothing_slow() -> None:
    script = "import sys; from redrafter_vllm.cli.main import main; main(['--help']); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in output.splitlines()[-1].split()}
    assert "redrafter_vllm" in loaded
    assert not loaded & {"torch", "vllm", "transformers", "numpy", "redrafter_training", "jsonargparse"}


EVERY_HELP = """
import contextlib, io, sys
from redrafter_vllm.cli.commands import COMMANDS
from redrafter_vllm.cli.main import main
slow = {"torch", "vllm", "transformers", "datasets", "ray", "matplotlib"}
for name in COMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        main([name, "--help"])
    assert shown.getvalue().startswith(f"usage: redrafter {name} "), name
    assert not slow & set(sys.modules), (name, slow & set(sys.modules))
"""


@pytest.mark.process
def test_no_commands_help_imports_anything_slow() -> None:
    subprocess.run([sys.executable, "-c", EVERY_HELP], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_own_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: redrafter {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_modules_name_outside_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    module = COMMANDS[name].module.removesuffix(".__main__")
    assert COMMANDS[name].load().build_parser().prog == f"python -m {module}"


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` sets what commands show as their name."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == help_text()


def test_a_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "--target", "x"]) == 2
    message = capsys.readouterr().err
    assert "'trian' is no command (did you mean 'train'?)" in message and message.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("redrafter 0.")


def test_arguments_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def own_main(argv: list[str]) -> int:
        given.extend([argv, sys.argv])
        return 7

    monkeypatch.setattr(Command, "load", lambda self: SimpleNamespace(main=own_main))
    assert main(["trim", "a", "--window", "3"]) == 7
    assert given == [["a", "--window", "3"], ["redrafter trim", "a", "--window", "3"]]


def test_without_the_training_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = commands.find_spec
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "redrafter_training" else find(name))
    assert main(["train"]) == 1
    assert "pip install ./training" in capsys.readouterr().err
    assert COMMANDS["doctor"].is_installed


@pytest.mark.process
def test_completion_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        source = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_redrafter; "
        shell = subprocess.run(["bash", "-c", source + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True)
        assert not shell.stderr, shell.stderr
        return shell.stdout.split()

    assert completed("redrafter", "tr") == ["train", "trim"]
    assert completed("redrafter", "evaluate", "--beam-w") == ["--beam-width"]
    assert "--draft-vocab-size" in completed("redrafter", "train", "--draft")
    assert completed("redrafter", "completion", "z") == ["zsh"]
