# SPDX-License-Identifier: Apache-2.0
"""Messages on what is missing name folders and extras that a clone has, and no package that no index has."""

import re
import tomllib

import pytest

from redrafter_vllm.utils.install import install_plugin, install_training, install_vllm
from tests.paths import ROOT

UNPUBLISHED = re.compile(r"pip install\s+'?(redrafter-(vllm|training))")


def test_what_is_typed_in_a_clone() -> None:
    assert install_plugin() == "in a clone of the repository, pip install ."
    assert install_plugin("bench") == "in a clone of the repository, pip install '.[bench]'"
    assert install_training() == "in a clone of the repository, pip install ./training"
    assert install_training("wandb") == "in a clone of the repository, pip install './training[wandb]'"
    assert "pip install '.[cuda]' on an NVIDIA GPU, or make setup" in install_vllm()


@pytest.mark.parametrize(("folder", "extras"), [(".", {"cuda", "bench"}), ("training", {"mlflow", "smollm2", "wandb"})])
def test_the_clone_has_them(folder: str, extras: set[str]) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= project["optional-dependencies"].keys()


def test_no_message_installs_a_package_that_nobody_has_published() -> None:
    """Whoever takes such a name on an index would be installed."""
    files = [*ROOT.glob("redrafter_vllm/**/*.py"), *ROOT.glob("training/**/*.py"), *ROOT.glob("docs/**/*.md")]
    files += [*ROOT.glob("examples/**/*"), *ROOT.glob("deploy/**/*")]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.is_file()}
    assert len(texts) > 300
    assert [str(file) for file, text in texts.items() if UNPUBLISHED.search(text)] == []
