# SPDX-License-Identifier: Apache-2.0
"""The wheels and source archives of both distributions: what is in them, and that their commands start."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from redrafter_vllm.cli.commands import COMMANDS
from tests.paths import ROOT

PACKAGES = {"redrafter_vllm": ROOT, "redrafter_training": ROOT / "training"}

pytestmark = pytest.mark.process


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path) -> Path:
    """The wheel of a source folder, built with the installed setuptools."""
    options = "--no-deps --no-build-isolation --no-index --disable-pip-version-check -q"
    run("-m", "pip", "wheel", *options.split(), "-w", out, source, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module", params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def source(package: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, as builds leave files behind."""
    copy, original = tmp_path_factory.mktemp("source"), PACKAGES[package]
    shutil.copytree(original / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(original / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_a_wheel_has_the_package_and_nothing_else(package: str, wheel: Path) -> None:
    files = (path for path in (PACKAGES[package] / package).rglob("*") if path.is_file())
    expected = {str(path.relative_to(PACKAGES[package])) for path in files if path.parent.name != "__pycache__"}
    assert f"{package}/py.typed" in expected
    assert names(wheel) == expected


def test_a_wheel_has_the_license(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = run("-c", code, tmp_path, cwd=source).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "out").mkdir()
    again = build(tmp_path / name.removesuffix(".tar.gz"), tmp_path / "out")
    assert names(again) == names(wheel)


def test_the_commands_start(package: str, wheel: Path, tmp_path: Path) -> None:
    """From the installed wheel, in a folder without the sources; what the package needs is the environment's."""
    site = tmp_path / "site"
    options = "--no-deps --no-index --disable-pip-version-check -q"
    run("-m", "pip", "install", *options.split(), "--target", site, wheel, cwd=tmp_path)
    # The other distribution comes from the repository, behind the installed one.
    path = os.pathsep.join([str(site), *map(str, PACKAGES.values())])
    assert run("-c", f"import {package}; print({package}.__file__)", cwd=tmp_path, PYTHONPATH=path).startswith(
        str(site)
    )
    if package == "redrafter_vllm":
        assert "usage: redrafter" in run(site / "bin" / "redrafter", "--help", cwd=tmp_path, PYTHONPATH=path)
    for name, command in COMMANDS.items():
        if command.module.startswith(f"{package}."):
            shown = run("-m", "redrafter_vllm", name, "--help", cwd=tmp_path, PYTHONPATH=path)
            assert f"usage: redrafter {name} " in shown
