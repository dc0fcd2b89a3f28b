# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of targets depend on the content of their files, every byte of it, and on nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.data.chat_templates import template_fingerprint
from redrafter_training.data.prepare import examples_file
from redrafter_training.run.inputs import input_fingerprints
from redrafter_vllm.checkpoint.fingerprint import (
    target_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tests.paths import ASSET


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    shutil.copytree(ASSET, folder, ignore=shutil.ignore_patterns("redrafter*"))
    return folder


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {part for part in before if before[part] != after[part]}


def append(path: Path, text: str = " ") -> None:
    path.write_text((path.read_text() if path.exists() else "") + text)


def flip_a_norm(folder: Path) -> None:
    """Same names, types and shapes; a few bytes in the middle of the file."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= -1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def another_shard(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (flip_a_norm, {"weights"}),
        (flip_a_bit, {"weights"}),
        (another_shard, {"weights"}),
        (lambda folder: append(folder / "config.json"), {"weights"}),
        (lambda folder: append(folder / "modeling_own.py", "x = 1\n"), {"weights"}),
        (lambda folder: append(folder / "tokenizer.json"), {"tokenizer"}),
        (lambda folder: append(folder / "tokenizer_config.json"), {"tokenizer"}),
        (lambda folder: append(folder / "chat_template.jinja", "{{ messages }}"), {"tokenizer"}),
        (lambda folder: append(folder / "generation_config.json"), {"generation"}),
        (lambda folder: append(folder / "README.md"), set()),
        (lambda folder: (folder / "redrafter").mkdir(), set()),
        (lambda folder: (folder / "model.safetensors").touch(), set()),
    ],
)
def test_each_part_follows_its_files(target: Path, change: Callable[[Path], Any], parts: set[str]) -> None:
    before = target_fingerprint(str(target))
    change(target)
    assert changed(before, target_fingerprint(str(target))) == parts


def test_a_copy_is_the_same_target(target: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(target, copy)
    links = tmp_path / "links"
    links.mkdir()
    for file in target.iterdir():
        (links / file.name).symlink_to(file)
    assert target_fingerprint(str(target)) == target_fingerprint(str(copy)) == target_fingerprint(str(links))


def test_a_target_on_the_hub_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "1" * 40
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", lambda name: ({"_commit_hash": commit}, {}))
    before = target_fingerprint("some/model")
    assert before == target_fingerprint("some/model")
    commit = "2" * 40
    assert changed(before, target_fingerprint("some/model")) == {"weights", "tokenizer", "generation"}


def test_a_template_is_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jinja", tmp_path / "second.jinja"
    first.write_text("{{ messages }}")
    second.write_text("{{ messages }}")
    assert template_fingerprint(str(first)) == template_fingerprint(str(second))
    second.write_text("{{ messages }} ")
    assert template_fingerprint(str(first)) != template_fingerprint(str(second))
    assert (template_fingerprint(None), template_fingerprint("vicuna")) == (None, "vicuna")


def test_examples_belong_to_tokenizer_and_template(target: Path, tmp_path: Path) -> None:
    template, data = tmp_path / "own.jinja", tmp_path / "data.jsonl"
    template.write_text("{{ messages }}")
    job = Job(str(target), str(data), chat_template=str(template), out=tmp_path / "out")
    data.write_text('{"text": "a"}')

    def place(window: int = 64) -> Path:
        return examples_file(job, window, input_fingerprints(job, DistillConfig(Budget(1))))

    names = [place()]
    flip_a_norm(target)  # tokens do not depend on weights
    assert place() == names[0]
    template.write_text("{{ messages[0] }}")
    names.append(place())
    append(target / "tokenizer.json")
    names += [place(), place(65)]
    data.write_text('{"text": "b"}')
    names.append(place())
    assert len(set(names)) == 5


def test_parts_by_themselves(target: Path) -> None:
    whole = target_fingerprint(str(target))
    assert whole["weights"] == weights_fingerprint(str(target)) != whole["generation"]
    assert whole["tokenizer"] == tokenizer_fingerprint(str(target))


def test_values_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Checkpoints, caches and responses store them: other values would make what was stored before unusable."""
    contents = {
        "config.json": "{}",
        "model.safetensors": "weights",
        "tokenizer.json": "[]",
        "generation_config.json": "{ }",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert target_fingerprint(str(tmp_path)) == {
        "weights": "807a8321ece3453f0b2666271a864e3e",
        "tokenizer": "137c4c16c008650dbfd66f3b6f3060fc",
        "generation": "fed0039265aefd114739dfda737b1349",
    }
    (tmp_path / "template.jinja").write_text("template")
    assert template_fingerprint(str(tmp_path / "template.jinja")) == "5cde0f1298f41f7d1c8b907a36992a7a"
