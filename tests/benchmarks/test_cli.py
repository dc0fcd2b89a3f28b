# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' commands have in common."""

import importlib
import importlib.util
import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cli
from redrafter_vllm.bench.child import ChildError

COMMANDS = (
    "demo",
    "gpu_check",
    "models.inflate",
    "models.roofline",
    "serving.adaptation",
    "serving.chat",
    "serving.context_length",
    "serving.drafter_levers",
    "serving.drafting_round",
    "serving.speedup",
    "serving.structured_output",
    "serving.tokens_per_step",
    "training.ablations",
    "training.chat_recipes",
    "training.packing",
    "training.ray_workers",
    "training.training_step",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_command_that_starts_the_module(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"benchmarks.{command}"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} ")
    assert getattr(module, "MODULE", name) == name


def run(
    folder: Path,
    *,
    measure: Callable[[Namespace, Console], cli.Report] = lambda options, console: {"figure": 1},
    passed: bool = True,
    record_failed: bool = True,
) -> int:
    def parse(argv: Sequence[str]) -> Namespace:
        return Namespace(out=folder, number=int(argv[0]))

    def show(report: cli.Report, console: Console) -> None:
        console.print("shown")

    return cli.run_benchmark(
        "benchmarks.some.thing", ["7"], parse, measure, show, passed=lambda report: passed, record_failed=record_failed
    )


def test_a_report_is_recorded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    (file,) = tmp_path.glob("thing_*.json")
    stored = json.loads(file.read_text())
    assert (stored["figure"], stored["command"]) == (1, "python -m benchmarks.some.thing 7")
    assert capsys.readouterr().out.splitlines() == ["shown", str(file)]


@pytest.mark.parametrize("record_failed", [False, True])
def test_a_report_that_fails_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], record_failed: bool) -> None:
    assert run(tmp_path, passed=False, record_failed=record_failed) == 1
    assert len(list(tmp_path.iterdir())) == record_failed
    assert capsys.readouterr().out.startswith("shown\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such shape"), "no such shape"),
        (ChildError("the engine failed"), "the engine failed"),
        (FileNotFoundError(2, "No such file or directory", "target"), "No such file or directory: target"),
    ],
)
def test_errors_are_a_sentence_and_nothing_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    def measure(options: Namespace, console: Console) -> cli.Report:
        raise error

    assert run(tmp_path, measure=measure) == 1
    assert capsys.readouterr().err == message + "\n"
    assert not list(tmp_path.iterdir())


def test_a_record_has_the_name_and_the_files_that_the_command_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def beside(report: cli.Report, file: Path) -> list[Path]:
        other = file.with_suffix(".md")
        other.write_text(str(report["figure"]))
        return [other]

    status = cli.run_benchmark(
        "benchmarks.some.thing",
        [],
        lambda argv: Namespace(out=tmp_path, number=7),
        lambda options, console: {"figure": 1},
        lambda report, console: None,
        name=lambda options: f"thing-{options.number}",
        beside=beside,
    )
    (record,) = tmp_path.glob("thing-7_*.json")
    assert status == 0 and record.with_suffix(".md").read_text() == "1"
    assert capsys.readouterr().out.splitlines() == [str(record), str(record.with_suffix(".md"))]
