# SPDX-License-Identifier: Apache-2.0
"""Invalid names, links, headers and files in a checkpoint."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import files as checkpoint_files
from redrafter_vllm.checkpoint import io as checkpoint
from tests.checkpoint.damage import edit_tensors, refused
from tests.oracles import random_drafter


@pytest.fixture
def indexed(saved: Path) -> Path:
    names = load_file(saved / "model.safetensors")
    write_index(saved, dict.fromkeys(names, "model.safetensors"))
    return saved


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_huge_files(indexed: Path) -> None:
    for name, words in (("model.safetensors.index.json", "larger than 8 MiB"), ("config.json", "larger than 4 MiB")):
        with (indexed / name).open("r+b") as stream:
            stream.truncate(1 << 40)  # a sparse file
        refused(indexed, errors.CheckpointConfigError, name, words)


@pytest.mark.parametrize("name", [1, None, ["x"], {"a": "b"}, True])
def test_index_entry_is_no_file_name(indexed: Path, name: object) -> None:
    write_index(indexed, {"a": "model.safetensors", "b": name})
    refused(indexed, errors.UnreadableWeightsError, "expected the name of a file")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\x00b", "\ud800"])
def test_index_names_impossible_files(indexed: Path, name: str) -> None:
    write_index(indexed, {"a": name})
    with pytest.raises(errors.CheckpointNotFoundError) as caught:
        checkpoint.check_checkpoint(indexed)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", 3])
def test_index_without_a_map(indexed: Path, weight_map: object) -> None:
    write_index(indexed, weight_map)
    refused(indexed, errors.UnreadableWeightsError, "no weight_map")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{there}/outside.safetensors", "..", ".", "", "inner/../model.safetensors", "a/"]
)
def test_index_leads_outside(indexed: Path, name: str) -> None:
    (indexed / "model.safetensors").rename(indexed.parent / "outside.safetensors")
    write_index(indexed, {"a": name.format(there=indexed.parent)})
    refused(indexed, errors.OutsideCheckpointError, "index.json names", "no file beside it")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_links(indexed: Path, name: str) -> None:
    """Links within the directory are followed; those to files outside are refused, and so are broken ones."""
    file, elsewhere = indexed / name, indexed.parent / "elsewhere"
    file.rename(indexed / "own")
    file.symlink_to("own")
    assert checkpoint.check_checkpoint(indexed) == random_drafter().config
    (indexed / "own").rename(elsewhere)
    refused(indexed, errors.CheckpointNotFoundError, name, "is a broken link")
    for target in (elsewhere, Path("../elsewhere")):
        file.unlink()
        file.symlink_to(target)
        refused(indexed, errors.OutsideCheckpointError, name, "out of its directory")
    file.unlink()
    file.symlink_to(name)
    refused(indexed, errors.CheckpointNotFoundError, name, "symbolic links")


def test_the_directory_may_be_a_link(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    assert checkpoint.check_checkpoint(tmp_path / "link") == random_drafter().config


@pytest.mark.parametrize("inner", ["", "redrafter"])
def test_the_hubs_cache(saved: Path, tmp_path: Path, inner: str) -> None:
    """Its snapshots are links to blobs of the same repository, and to nothing else."""
    repository = tmp_path / "hub" / "models--some--drafter"
    snapshot = repository / "snapshots" / "abc" / inner
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (repository / "blobs" / f"hash of {name}").write_bytes((saved / name).read_bytes())
        (snapshot / name).symlink_to(os.path.relpath(repository / "blobs" / f"hash of {name}", snapshot))
    assert checkpoint.check_checkpoint(snapshot) == random_drafter().config
    Drafter.from_pretrained(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(saved / "config.json")
    refused(snapshot, errors.OutsideCheckpointError, "config.json")


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "device"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_no_regular_file(indexed: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = indexed / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)  # reading it would block forever
    elif kind == "directory":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(indexed)  # a socket's name has to be short
        socket.socket(socket.AF_UNIX).bind(name)
    refused(indexed, errors.CheckpointNotFoundError, f"is a {kind}")


def header(directory: Path) -> tuple[dict, bytes]:
    data = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(directory: Path, entries: dict, rest: bytes) -> None:
    text = json.dumps(entries).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + rest)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [-1, 3]},
        {"data_offsets": [16, 8]},
        {"data_offsets": "x"},
        {"shape": [2**40, 2**40]},
        {"shape": [-1]},
        {"shape": [6.5]},
        {"shape": [10**30]},
        {"dtype": "F64"},
        {"dtype": "X9"},
        {"dtype": None},
    ],
    ids=str,
)
def test_wrong_header(saved: Path, change: dict) -> None:
    entries, rest = header(saved)
    entries["rnn_u.bias"] |= change
    write_header(saved, entries, rest)
    refused(saved, errors.UnreadableWeightsError, "safetensors")


def test_overlapping_tensors(saved: Path) -> None:
    entries, rest = header(saved)
    entries["rnn_u.weight"]["data_offsets"] = entries["rnn_w.weight"]["data_offsets"]
    write_header(saved, entries, rest)
    refused(saved, errors.UnreadableWeightsError, "safetensors")


@pytest.mark.parametrize("length", [0, 7, 10**6, 17 << 20, 10**12, 2**63, 2**64 - 1])
def test_wrong_header_length(saved: Path, length: int) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(saved, errors.UnreadableWeightsError, "safetensors")


def test_header_of_many_megabytes(saved: Path) -> None:
    """A header of the length that it declares, which the library would parse."""
    (saved / "model.safetensors").write_bytes((90 << 20).to_bytes(8, "little") + b"{}")
    with (saved / "model.safetensors").open("r+b") as stream:
        stream.truncate(8 + (90 << 20))
    refused(saved, errors.UnreadableWeightsError, "more than 8 MiB")


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_truncated_file(saved: Path, size: int) -> None:
    (saved / "model.safetensors").write_bytes(bytes(size))
    refused(saved, errors.UnreadableWeightsError, "safetensors")


@pytest.mark.parametrize("name", ["x" * 100_000, "a\nb", "\u202e", ""])
def test_unusual_tensor_names(saved: Path, name: str) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(1)}))
    refused(saved, errors.SurplusTensorsError, "does not imply")


def test_one_tensor_in_two_files(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file({"rnn_u.bias": tensors["rnn_u.bias"] + 1}, saved / "other.safetensors")
    write_index(saved, dict.fromkeys(tensors, "model.safetensors") | {"rnn_u.bias": "other.safetensors"})
    refused(saved, errors.SurplusTensorsError, "rnn_u.bias twice", "model.safetensors", "other.safetensors")


@pytest.mark.parametrize("path", ["x" * 5000, "a\x00b", "\ud800"])
def test_impossible_directory(path: str) -> None:
    with pytest.raises(errors.CheckpointNotFoundError, match="no drafter checkpoint"):
        checkpoint.check_checkpoint(path)


def test_weights_replaced_while_they_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_then_cut(file: Path) -> list[checkpoint_files.StoredTensor]:
        found = list(checkpoint_files.stored_tensors(file))
        file.write_bytes(b"")
        return found

    monkeypatch.setattr(checkpoint, "stored_tensors", read_then_cut)
    with pytest.raises(errors.UnreadableWeightsError, match="cannot be read as safetensors"):
        checkpoint.load_checkpoint(saved)


@pytest.mark.parametrize("offsets", [[-(2**63), 0, 0], [2**63 - 1, 0, 0], [0, 2**63 - 1, -(2**63)], [0, 9, 0]])
def test_map_with_huge_offsets(tmp_path: Path, offsets: list[int]) -> None:
    """Sums beyond 64 bits wrap around, which gives no valid map."""
    drafter = random_drafter(draft_vocab_size=3)
    drafter.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update(d2t=torch.tensor(offsets)))
    with pytest.raises(errors.DraftVocabularyError, match="no draft vocabulary"):
        checkpoint.load_checkpoint(tmp_path)
