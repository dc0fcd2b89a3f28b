# SPDX-License-Identifier: Apache-2.0
"""`redrafter bench`: mistakes end in one sentence before an engine starts; the options of a run."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from redrafter_vllm.bench import fleet
from redrafter_vllm.cli import bench
from redrafter_vllm.utils.local_server import HOST
from tests.bench.example import PLAIN, rounds
from tests.paths import ASSET


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> Any:
        pytest.fail("an engine starts")

    monkeypatch.setattr(fleet, "start_offline", start)


def message(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    assert bench.main(given) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    return [str(ASSET), "--out", str(tmp_path / "out")]


def test_bad_json(place: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is not JSON" in message(capsys, "offline", *place, "--config", "n={method: ngram}")
    assert not (tmp_path / "out").exists()


def test_an_unknown_data_set(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "mt_bench is no data set: give mt-bench" in message(capsys, "offline", *place, "--data", "mt_bench")


def test_a_target_without_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("REDRAFTER_CHECKPOINT", raising=False)
    assert "No ReDrafter checkpoint for" in message(capsys, "offline", str(tmp_path), "--out", str(tmp_path / "out"))


def test_a_busy_port(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in message(capsys, "serve", *place, "--port", str(port))


def test_too_little_memory(
    place: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "and 1.0 GiB are free: close other programs" in message(capsys, "offline", *place)


def test_too_few_prompts(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = message(capsys, "offline", *place, "--prompt-tokens", "20", "--data", "mt-bench")
    assert "prompts of at most 20 tokens, and 64 are needed" in text


def test_results_of_something_else(place: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    text = message(capsys, "offline", *place, "--concurrency", "1")
    assert "exists and holds no benchmark: choose another --out" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_finished_benchmark_is_reported_again(
    place: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds that are there are kept, and no engine starts."""
    from redrafter_vllm.bench import rounds as stored

    given = ["offline", *place, "--rounds", "3", "--concurrency", "1", "16", "--data", "random"]
    begun: list[Any] = []

    def begin(self: Any, run: Any) -> int:
        begun.append(run)
        for number, found in enumerate(rounds()):
            self.add(number, found)
        return 3

    monkeypatch.setattr(stored.Results, "begin", begin)
    assert bench.main([*given, "--", "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 rounds, which are kept" in shown and "1.20 – 2.20" in shown
    assert (tmp_path / "out" / "report.html").is_file()
    settings = begun[0]["settings"]
    assert settings["options"] == ["--dtype", "float32"] and settings["concurrency"] == [1, 16]
    assert next(iter(settings["configurations"])) == PLAIN
