# SPDX-License-Identifier: Apache-2.0
"""The examples that make drafters: conversion, training on one machine and on a cluster of two nodes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redrafter_vllm.model.drafter import Drafter
from tests.examples.files import EXAMPLES, run
from tests.paths import ASSET
from tests.training.small_command import KEYS, copy_target, write_data

STEPS = 2
SMALL = [*KEYS, "--max-steps", STEPS]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_target(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "conversations.json")


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_every_example_is_listed_and_tested() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert files and all(f"]({name})" in listed and f'"{name}"' in tests for name in files)


@pytest.mark.process
def test_a_drafter_of_tensorrt_llm_is_converted(tmp_path: Path) -> None:
    apples = load_file(ASSET / "redrafter" / "model.safetensors")
    last = max(
        name for name in apples if name.startswith("lm_head.") and name.endswith(".weight") and ".linear." not in name
    )
    theirs = {
        "drafter.lm_head.weight" if name == last else f"drafter.{name.replace('lm_head.', 'layers.')}": tensor
        for name, tensor in apples.items()
    }
    own = json.loads((ASSET / "redrafter" / "config.json").read_text())
    config = json.loads((ASSET / "config.json").read_text())
    config |= {
        "redrafter_num_layers": own["num_draft_layers"],
        "redrafter_exit_dim": own["exit_dim"],
        "redrafter_is_rnn": own["rnn"],
    }
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    save_file(theirs, tmp_path / "theirs" / "model.safetensors")

    printed = run("convert_checkpoint.sh", tmp_path / "theirs", tmp_path / "ours").stdout

    converted = load_file(tmp_path / "ours" / "model.safetensors")
    assert converted.keys() == apples.keys()
    assert all(torch.equal(tensor, apples[name]) for name, tensor in converted.items())
    assert f"{own['vocab_size']:,}" in printed


@pytest.mark.process
def test_training_on_one_machine(target: Path, data: Path, tmp_path: Path) -> None:
    run("train_one_machine.sh", target, data, *SMALL, "--out", tmp_path / "drafter")
    check(tmp_path / "drafter")


@pytest.mark.ray
def test_training_on_a_cluster_of_two_nodes(target: Path, data: Path, tmp_path: Path, two_nodes: str) -> None:
    # Reading by Ray Data, which has tests of its own, would start more processes.
    options = [*SMALL, "--ingest", "direct"]
    done = run("train_ray_cluster.sh", 2, tmp_path, target, data, *options, RAY_ADDRESS=two_nodes)
    check(tmp_path / "drafter")
    # Each worker takes a CPU, and each node has one, so there is one worker on each.
    assert "[rank=0, world_size=2]" in done.stdout + done.stderr


def check(folder: Path) -> None:
    report = json.loads((folder / "training.json").read_text())
    assert report["steps"] == STEPS
    assert Drafter.from_pretrained(folder).config.exit_dim == 64
