# SPDX-License-Identifier: Apache-2.0
"""Whether a drafter fits a target: sizes, vocabulary, and what it was trained for."""

import json
import shutil
from pathlib import Path

import pytest

from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
from redrafter_vllm.inspection.fit import MAX_VOCAB_PADDING, fit, trained_for
from redrafter_vllm.utils.findings import Finding, Level
from tests.models import save_random_drafter, save_random_llama

PARTS = {"weights": "w", "tokenizer": "t", "generation": "g"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_random_llama(tmp_path / "target")


def found(drafter: Path, target: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in fit(drafter, str(target))}


def test_the_pair_of_a_training(target: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(tmp_path / "drafter")
    training = drafter / "training.json"
    training.write_text(json.dumps({"target_content": target_fingerprint(str(target))}))
    assert {what: finding.level for what, finding in found(drafter, target).items()} == {
        "hidden size": Level.OK, "vocabulary": Level.OK, "target": Level.OK
    }  # fmt: skip
    # A copy is the same target. One with another number in its weights is not, and serving would not notice.
    copy = Path(shutil.copytree(target, tmp_path / "copy"))
    assert found(drafter, copy)["target"].level is Level.OK
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    other = found(drafter, copy)["target"]
    assert other.level is Level.NOTE and "other weights than" in other.says and "--init-from" in other.remedy


def test_a_foreign_drafter(target: Path, tmp_path: Path) -> None:
    unknown = found(save_random_drafter(tmp_path / "drafter"), target)
    assert unknown["vocabulary"].level is Level.OK
    assert unknown["target"].level is Level.NOTE and "does not say" in unknown["target"].says
    assert "--tree" in unknown["target"].remedy


def test_another_hidden_size(target: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(tmp_path / "drafter", hidden_size=48)
    both = found(drafter, target)
    assert both["hidden size"].level is Level.PROBLEM and "48" in both["hidden size"].says
    assert "target" not in both  # its files need not be read


# By the tokens that the drafter lacks.
LEVELS = {
    0: Level.OK,
    1: Level.NOTE,
    MAX_VOCAB_PADDING: Level.NOTE,
    MAX_VOCAB_PADDING + 1: Level.PROBLEM,
    -1: Level.PROBLEM,
}


@pytest.mark.parametrize("lacking", LEVELS)
def test_vocabularies(lacking: int, target: Path, tmp_path: Path) -> None:
    config = json.loads((target / "config.json").read_text())
    drafter = save_random_drafter(tmp_path / "drafter")
    config["vocab_size"] += lacking
    (target / "config.json").write_text(json.dumps(config))
    assert found(drafter, target)["vocabulary"].level is LEVELS[lacking]


def test_the_padding_is_that_of_serving() -> None:
    from redrafter_vllm.integration.frontend import build_config

    assert MAX_VOCAB_PADDING == build_config.MAX_VOCAB_PADDING


@pytest.mark.parametrize(
    ("now", "level", "says"),
    [
        (PARTS, Level.OK, "the one that"),
        ({**PARTS, "generation": "x"}, Level.OK, "the one that"),
        ({**PARTS, "weights": "x", "tokenizer": "x"}, Level.PROBLEM, "other weights and tokenizer or chat template"),
        ({**PARTS, "weights": "commit 12 of org/name"}, Level.NOTE, "cannot be compared"),
    ],
)
def test_content(now: dict[str, str], level: Level, says: str) -> None:
    finding = trained_for({"target_content": PARTS}, now, differing=Level.PROBLEM)
    assert finding.level is level and says in finding.says
