# SPDX-License-Identifier: Apache-2.0
"""A safetensors file and an index beside a sound config: the weights as they were written, or a documented error."""

import json
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.checkpoint.io import check_checkpoint, load_checkpoint
from tests.fuzz.inputs import damaged, damaged_bytes, damaged_json, only, to_json
from tests.oracles import random_drafter

DRAFTER = random_drafter(draft_vocab_size=5)


@cache
def written() -> tuple[dict[str, Any], bytes]:
    """Header and contents of the weights as they are stored."""
    with TemporaryDirectory() as folder:
        DRAFTER.save_pretrained(folder)
        data = Path(folder, "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def file_of(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + written()[1]


def files() -> st.SearchStrategy[bytes]:
    """Files with another header, with another length of it, and with bytes anywhere damaged."""
    names = (*written()[0], "dtype", "shape", "data_offsets")
    headers = damaged([written()[0]], names).map(to_json)
    lengths = st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 2000)
    return st.builds(file_of, headers, lengths) | damaged_bytes(st.just(file_of(to_json(written()[0]))))


@given(files())
@example(file_of(b"{}", 17 << 20))
@example(file_of(b"[" * 100_000))
@example(file_of(to_json({"a\n": {"dtype": "F32", "shape": [0, 10**18], "data_offsets": [0, 0]}})))
def test_safetensors(scratch: Path, data: bytes) -> None:
    if not (scratch / "config.json").exists():
        DRAFTER.save_pretrained(scratch)
    (scratch / "model.safetensors").unlink()  # what was mapped before may live on
    (scratch / "model.safetensors").write_bytes(data)
    with only(CheckpointError):
        config, tensors = load_checkpoint(scratch)
        assert config == check_checkpoint(scratch) == DRAFTER.config
        for name, tensor in DRAFTER.state_dict().items():
            assert tensors[name].shape == tensor.shape and bool(torch.isfinite(tensors[name]).all())


INDEX = {
    "metadata": {"total_size": 100},
    "weight_map": dict.fromkeys(written()[0], "model.safetensors") | {"rnn_u.bias": "model-2.safetensors"},
}
NAMES = ("model.safetensors", "model-2.safetensors", "../outside.safetensors", "{}/outside.safetensors", "link", "pipe")


@st.composite
def indices(draw: st.DrawFn) -> bytes:
    """Indices with other names of files, some of them of files that are there but elsewhere."""
    document = json.loads(json.dumps(INDEX))
    for name in draw(st.lists(st.sampled_from(sorted(INDEX["weight_map"])), max_size=3)):
        document["weight_map"][name] = draw(st.sampled_from(NAMES))
    return draw(damaged_json([document], ("weight_map", *NAMES)))


@given(indices())
@example(b'{"weight_map": {"a": ["x"]}}')
@example(to_json({"weight_map": {"a": "x" * 5000}}))
@example(to_json({"weight_map": {"a": "x\x00"}}))
@example(to_json({"weight_map": {"a": "\ud800"}}))
def test_index(scratch: Path, document: bytes) -> None:
    """Only the drafter in the directory is ever loaded, and not the one that stands beside it."""
    inner = scratch / "drafter"
    if not inner.exists():
        DRAFTER.save_pretrained(inner)
        split_in_two(inner)
        random_drafter(1, draft_vocab_size=5).save_pretrained(scratch / "other")
        (scratch / "other" / "model.safetensors").rename(scratch / "outside.safetensors")
        (inner / "link").symlink_to(scratch / "outside.safetensors")
        os.mkfifo(inner / "pipe")
    (inner / "model.safetensors.index.json").write_bytes(document.replace(b"{}/", f"{scratch}/".encode()))
    with only(CheckpointError):
        _, tensors = load_checkpoint(inner)
        assert all(torch.equal(tensors[name], tensor) for name, tensor in DRAFTER.state_dict().items())


def split_in_two(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({"rnn_u.bias": tensors.pop("rnn_u.bias")}, directory / "model-2.safetensors")
    save_file(tensors, directory / "model.safetensors")
