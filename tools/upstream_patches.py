# SPDX-License-Identifier: Apache-2.0
"""Runs our tests with one patch of docs/design/upstream: `python -m tools.upstream_patches 03_received_tokens`.

vLLM's folder of an environment that `make setup VLLM=0.33.0` made is copied by hard links, and the patch is applied to
the copy. Where docs/design/upstream/package has a patch of the same name, a copy of redrafter_vllm loses what the
change of vLLM makes unnecessary. The environment then runs, with the copies, the tests that the patch adds to vLLM, and
ours of its subject. The last lines say how many passed; exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.vllm_overlay import link_or_copy, site_packages

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "design" / "upstream"
ENVIRONMENT = ROOT / ".venv-0.33.0"
_ENGINE, _INTEGRATION = "tests/engine/test_", "tests/integration/"
# Beside the tests of identity: what the lines that a patch changes do for us.
SUBJECTS = {
    "01_method_registry": (f"{_ENGINE}plugin.py", f"{_INTEGRATION}frontend"),
    "02_startup_errors": (f"{_ENGINE}errors.py", f"{_INTEGRATION}test_start_errors_of_engines.py"),
    "03_received_tokens": (f"{_ENGINE}received.py", f"{_ENGINE}metrics.py"),
    "04_speculator_statistics": (f"{_ENGINE}metrics.py", f"{_ENGINE}received.py"),
    "05_sampling_params_of_a_method": (f"{_ENGINE}sampling.py", f"{_ENGINE}request_settings.py"),
    "06_nested_xargs": (f"{_ENGINE}request_settings.py",),
    "07_attention_choice": (f"{_ENGINE}cpu_attention.py", f"{_INTEGRATION}attention"),
    "08_session_parts": (f"{_ENGINE}sessions.py", f"{_ENGINE}session_surroundings.py"),
    "09_lora_logits_rows": (f"{_ENGINE}lora.py",),
    "10_prompt_logprobs_placeholders": (f"{_ENGINE}logprobs.py",),
    "11_draft_model_of_any_speculator": (f"{_ENGINE}draft_model.py", f"{_ENGINE}new_weights.py"),
    "12_cpu_model_runner": (f"{_ENGINE}plugin.py", f"{_ENGINE}warm_up.py"),
    "13_method_recognition": (f"{_ENGINE}plugin.py", f"{_INTEGRATION}frontend"),
}
IDENTITY = f"{_ENGINE}identity.py"
_OPTIONS = f"{_INTEGRATION}frontend/test_start_messages.py::test_options"
_LEFT_TO_VLLM = ("options0", "options1", "options2", "options10", "options12", "redrafter")
_ARRIVAL = f"{_ENGINE}plugin.py::test_a_configuration_that_arrives_in_a_process_installs_the_patches"
# Beginnings of the names of tests of what a reduced package does no more.
LOST = {
    # vLLM changes dashes in names of options, which it takes for strings. A registered method is not a rebinding.
    "01_method_registry": (f"{_OPTIONS}[options10-", _ARRIVAL),
    # The field `redrafter` beside `vllm_xargs`.
    "06_nested_xargs": (f"{_ENGINE}request_settings.py::test_the_body_of_every_kind_of_request",),
    # Misspelt methods, and options that are no object, get vLLM's errors.
    "13_method_recognition": (*(f"{_OPTIONS}[{case}-" for case in _LEFT_TO_VLLM), _ARRIVAL),
}


def needed(patch: Path) -> list[Path]:
    """The patches to apply for this one, in order: those that it names as needed, and itself."""
    return [patch.with_name(name) for name in re.findall(r"^Needs (\w+\.patch)", patch.read_text(), re.M)] + [patch]


def apply(patch: Path, folder: Path) -> None:
    """Apply a patch to the folder that holds `vllm`. Raises `subprocess.CalledProcessError` where it does not apply."""
    # A repository around the folder would make git look for the files there.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(["git", "apply", str(patch)], cwd=folder, env=environment, check=True)


def patched(patch: Path, environment: Path, folder: Path) -> None:
    """Make `folder/vllm`: that of the environment, with the patch.

    Git replaces a file that it changes, as Python does with compiled ones, so that nothing is written through a link.
    """
    source = site_packages(environment) / "vllm"
    shutil.copytree(source, folder / "vllm", symlinks=True, copy_function=link_or_copy)
    for each in needed(patch):
        apply(each, folder)


def reduced(name: str, folder: Path) -> bool:
    """Make `folder/redrafter_vllm`, without what the patch of this name makes unnecessary, if that is known."""
    patch = FOLDER / "package" / f"{name}.patch"
    if patch.exists():
        shutil.copytree(ROOT / "redrafter_vllm", folder / "redrafter_vllm")
        apply(patch, folder)
    return patch.exists()


def run_tests(tests: Sequence[str], environment: Path, folder: Path) -> Counter[str]:
    """How many tests passed, failed and were skipped, with the vLLM in `folder`."""
    python = environment / "bin" / "python"
    places = [folder, ROOT, ROOT / "training", ROOT / "tools" / "cpu_support"]
    # Without the working directory, whose package would come first.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONSAFEPATH": "1"}
    where = "import vllm, redrafter_vllm; print(vllm.__file__, redrafter_vllm.__file__)"
    found = subprocess.run([python, "-c", where], cwd=ROOT, env=variables, check=True, capture_output=True, text=True)
    package = folder if (folder / "redrafter_vllm").exists() else ROOT
    assert all(file in found.stdout for file in (f"{folder}/vllm/", f"{package}/redrafter_vllm/")), found.stdout
    record = folder / "result.xml"
    # The project's own setting would put its package before the copy.
    options = ["-q", "-p", "no:cacheprovider", "-o", "pythonpath="]
    files = ["-c", str(ROOT / "pyproject.toml"), f"--junitxml={record}"]
    subprocess.run([python, "-m", "pytest", *options, *files, *tests], cwd=ROOT, env=variables)
    counts: Counter[str] = Counter()
    for case in ElementTree.parse(record).iter("testcase"):
        tags = {child.tag for child in case}
        counts["failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.upstream_patches", description=__doc__)
    parser.add_argument(
        "patch", choices=sorted(SUBJECTS), metavar="PATCH", help=f"one of {', '.join(sorted(SUBJECTS))}"
    )
    parser.add_argument("tests", nargs="*", help=f"for pytest; without any {IDENTITY} and those of the patch's subject")
    parser.add_argument(
        "--environment",
        type=Path,
        default=ENVIRONMENT,
        metavar="DIR",
        help="(default: what make setup VLLM=0.33.0 made)",
    )
    options = parser.parse_args(arguments)
    if not (options.environment / "bin" / "python").exists():
        parser.error(f"there is no environment {options.environment}: make setup VLLM=0.33.0")
    tests = options.tests or [IDENTITY, *SUBJECTS[options.patch]]
    with tempfile.TemporaryDirectory(prefix="redrafter-upstream-") as folder:
        patched(FOLDER / f"{options.patch}.patch", options.environment.absolute(), Path(folder))
        is_reduced = reduced(options.patch, Path(folder))
        kind = "reduced package" if is_reduced else "package as it is"
        left_out = [f"--deselect={test}" for test in LOST.get(options.patch, ()) if is_reduced]
        own = [str(file) for file in (Path(folder) / "tests").rglob("test_*.py")]
        runs = [run_tests(each, options.environment.absolute(), Path(folder)) for each in (own, [*tests, *left_out])]
    for whose, counts in zip(("its own tests", f"{kind}, {' '.join(tests)}"), runs, strict=True):
        said = ", ".join(f"{counts[what]} {what}" for what in ("passed", "failed", "skipped") if counts[what])
        print(f"{options.patch}: {said} ({whose})")
    return 1 if any(counts["failed"] or not counts["passed"] for counts in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
