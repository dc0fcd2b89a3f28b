# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is data from outside: sizes, names, links and files that are not what they should be."""

import json
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redrafter_vllm import Drafter, DrafterConfig, checkpoint, checkpoint_files
from redrafter_vllm.drafter import tensor_shapes
from tests.drafter.damage import edit_config, edit_tensors, refused
from tests.drafter.oracles import random_drafter

SIZES = ("vocab_size", "hidden_size", "exit_dim", "num_draft_layers")


@pytest.fixture
def indexed(saved: Path) -> Path:
    names = load_file(saved / "model.safetensors")
    write_index(saved, dict.fromkeys(names, "model.safetensors"))
    return saved


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [10**9, 10**12, 2**31, 2**32, 10**20, 10**30, 10**90, -(10**30), 1e9, True, "8", [8]])
def test_absurd_sizes(saved: Path, key: str, value: object) -> None:
    edit_config(saved, lambda config: config.update({key: value}))
    refused(saved, checkpoint.CheckpointConfigError, key)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("vocab_size", checkpoint.TensorShapeError),
        ("num_draft_layers", checkpoint.MissingTensorsError),
        ("hidden_size", checkpoint.MissingTensorsError),  # it then differs from half of exit_dim: an input projection
        ("exit_dim", checkpoint.MissingTensorsError),  # likewise
    ],
)
@pytest.mark.parametrize("value", [900, 2**24])
def test_sizes_that_the_weights_do_not_have(
    saved: Path, key: str, error: type[checkpoint.CheckpointError], value: int
) -> None:
    """In range, but the file holds nothing of the kind: said without making a tensor of that size."""
    if key == "num_draft_layers":
        value = min(value, 1000)
    edit_config(saved, lambda config: config.update({key: value}))
    refused(saved, error)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null", "12.0"])
def test_numbers_that_are_no_sizes(saved: Path, value: str) -> None:
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"exit_dim": 12', f'"exit_dim": {value}'))
    refused(saved, checkpoint.CheckpointConfigError, "exit_dim")


def test_shapes_are_the_modules() -> None:
    for overrides in ({}, {"rnn": False}, {"exit_dim": 7}, {"num_draft_layers": 0}, {"draft_vocab_size": 5}):
        drafter = random_drafter(**overrides)
        shapes = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items() if name != "d2t"}
        assert tensor_shapes(drafter.config) == shapes


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"[" * 100_000, "too deep"),
        (b'{"a":' * 100_000, "too deep"),
        (b'{"exit_dim": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"exit_dim": -' + b"9" * 200 + b"}", "digits"),
        (b'{"exit_dim": 1, "exit_dim": 2}', "'exit_dim' twice"),
        (b'{"redrafter": {"rnn": true, "rnn": false}}', "'rnn' twice"),
        (b'\xef\xbb\xbf{"exit_dim": 1}', "BOM"),
        (b'{"exit_dim": "\xff"}', "utf-8"),
        (b"\x00", "JSON"),
        (b'"' + b"x\\n" * 5000 + b'"', "no JSON object"),
    ],
    ids=["deep list", "deep object", "long", "negative", "twice", "twice inside", "bom", "utf8", "null", "text"],
)
def test_config_that_is_no_plain_json(saved: Path, text: bytes, word: str) -> None:
    (saved / "config.json").write_bytes(text)
    refused(saved, checkpoint.CheckpointConfigError, word)


def test_huge_files(indexed: Path) -> None:
    for name, words in (("model.safetensors.index.json", "larger than 8 MiB"), ("config.json", "larger than 4 MiB")):
        with (indexed / name).open("r+b") as stream:
            stream.truncate(1 << 40)  # a sparse file
        refused(indexed, checkpoint.CheckpointConfigError, name, words)


@pytest.mark.parametrize("value", ["x" * 100_000, "a\nb\u202e", [[[[[[["deep"]]]]]]], {"a": ["x" * 1000] * 1000}])
def test_long_values_in_messages(saved: Path, value: object) -> None:
    edit_config(saved, lambda config: config.update(model_type=value))
    refused(saved, checkpoint.CheckpointConfigError, "model_type")
    edit_config(saved, lambda config: config.update(model_type="recurrent_drafting_drafter", rnn=value))
    refused(saved, checkpoint.CheckpointConfigError, "rnn must be true or false")


@pytest.mark.parametrize("name", [1, None, ["x"], {"a": "b"}, True])
def test_index_names_no_file_name(indexed: Path, name: object) -> None:
    write_index(indexed, {"a": "model.safetensors", "b": name})
    refused(indexed, checkpoint.UnreadableWeightsError, "expected the name of a file")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\x00b", "\ud800"])
def test_index_names_impossible_files(indexed: Path, name: str) -> None:
    write_index(indexed, {"a": name})
    with pytest.raises(checkpoint.CheckpointNotFoundError) as caught:
        checkpoint.check_checkpoint(indexed)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors", 3])
def test_index_without_a_map(indexed: Path, weight_map: object) -> None:
    write_index(indexed, weight_map)
    refused(indexed, checkpoint.UnreadableWeightsError, "no weight_map")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{there}/outside.safetensors", "..", ".", "", "inner/../model.safetensors", "a/"]
)
def test_index_leads_outside(indexed: Path, name: str) -> None:
    (indexed / "model.safetensors").rename(indexed.parent / "outside.safetensors")
    write_index(indexed, {"a": name.format(there=indexed.parent)})
    refused(indexed, checkpoint.OutsideCheckpointError, "index.json names", "no file beside it")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_links(indexed: Path, name: str) -> None:
    """Links within the directory are followed; one that leads out is refused, even to sound files; so is a dead one."""
    file, elsewhere = indexed / name, indexed.parent / "elsewhere"
    file.rename(indexed / "own")
    file.symlink_to("own")
    assert checkpoint.check_checkpoint(indexed) == random_drafter().config
    (indexed / "own").rename(elsewhere)
    refused(indexed, checkpoint.CheckpointNotFoundError, name, "leads nowhere")
    for target in (elsewhere, Path("../elsewhere")):
        file.unlink()
        file.symlink_to(target)
        refused(indexed, checkpoint.OutsideCheckpointError, name, "out of its directory")
    file.unlink()
    file.symlink_to(name)
    refused(indexed, checkpoint.CheckpointNotFoundError, name, "symbolic links")


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
    refused(snapshot, checkpoint.OutsideCheckpointError, "config.json")


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "device"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_no_regular_file(indexed: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = indexed / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)  # reading it would wait for ever
    elif kind == "directory":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(indexed)  # a socket's name has to be short
        socket.socket(socket.AF_UNIX).bind(name)
    refused(indexed, checkpoint.CheckpointNotFoundError, f"is a {kind}")


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
def test_lying_header(saved: Path, change: dict) -> None:
    entries, rest = header(saved)
    entries["rnn_u.bias"] |= change
    write_header(saved, entries, rest)
    refused(saved, checkpoint.UnreadableWeightsError, "safetensors")


def test_overlapping_tensors(saved: Path) -> None:
    entries, rest = header(saved)
    entries["rnn_u.weight"]["data_offsets"] = entries["rnn_w.weight"]["data_offsets"]
    write_header(saved, entries, rest)
    refused(saved, checkpoint.UnreadableWeightsError, "safetensors")


@pytest.mark.parametrize("length", [0, 7, 10**6, 17 << 20, 10**12, 2**63, 2**64 - 1])
def test_lying_header_length(saved: Path, length: int) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(saved, checkpoint.UnreadableWeightsError, "safetensors")


def test_header_of_many_megabytes(saved: Path) -> None:
    """A header as long as it says, of a length that the library would parse."""
    (saved / "model.safetensors").write_bytes((90 << 20).to_bytes(8, "little") + b"{}")
    with (saved / "model.safetensors").open("r+b") as stream:
        stream.truncate(8 + (90 << 20))
    refused(saved, checkpoint.UnreadableWeightsError, "more than 8 MiB")


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_hardly_a_file(saved: Path, size: int) -> None:
    (saved / "model.safetensors").write_bytes(bytes(size))
    refused(saved, checkpoint.UnreadableWeightsError, "safetensors")


@pytest.mark.parametrize("name", ["x" * 100_000, "a\nb", "\u202e", ""])
def test_strange_tensor_names(saved: Path, name: str) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(1)}))
    refused(saved, checkpoint.SurplusTensorsError, "no place")


def test_one_tensor_in_two_files(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file({"rnn_u.bias": tensors["rnn_u.bias"] + 1}, saved / "other.safetensors")
    write_index(saved, dict.fromkeys(tensors, "model.safetensors") | {"rnn_u.bias": "other.safetensors"})
    refused(saved, checkpoint.SurplusTensorsError, "rnn_u.bias twice", "model.safetensors", "other.safetensors")


def test_one_quantity_said_twice(tmp_path: Path) -> None:
    target = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6}
    block = {"num_draft_layers": 2, "num_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(target | {"redrafter": block}))
    refused(tmp_path, checkpoint.CheckpointConfigError, "num_draft_layers and num_layers both set num_draft_layers")
    block["num_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(target | {"redrafter": block}))
    assert checkpoint.read_config(tmp_path)[0].num_draft_layers == 2


@pytest.mark.parametrize(
    ("extra", "warnings"),
    [
        ({"hiden_size": 6}, ["hiden_size (did you mean hidden_size?)"]),
        ({"draft_vocabulary_size": 5}, ["draft_vocabulary_size (did you mean draft_vocab_size?)"]),
        ({"colour": 1}, ["colour"]),
        ({"a" * 100_000: 1, "b\nc": 2} | {f"key{i}": i for i in range(1000)}, ["and 998 more"]),
        ({"torch_dtype": "bfloat16", "transformers_version": "4.38.0", "_name_or_path": "x", "auto_map": {}}, []),
    ],
    ids=["slip", "longer", "nothing like it", "many", "silent"],
)
def test_unknown_keys(saved: Path, caplog: pytest.LogCaptureFixture, extra: dict, warnings: list[str]) -> None:
    edit_config(saved, lambda config: config.update(extra))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.check_checkpoint(saved) == random_drafter().config
        checkpoint.check_checkpoint(saved)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(warnings)  # once, however often it is read
    assert all(warning in messages[0] and messages[0].isprintable() for warning in warnings)


@pytest.mark.parametrize(
    "extra",
    [{"redrafter": {"num_layers": 2, "exitdim": 7}}, {"redrafter_num_layers": 2, "redrafter_exitdim": 7}],
    ids=["block", "flat"],
)
def test_unknown_keys_in_a_targets_config(tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: dict) -> None:
    """The target's own keys are its own business."""
    target = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6, "exotic_key": 3, "redrafter_num_beams": 4}
    (tmp_path / "config.json").write_text(json.dumps(target | extra))
    with caplog.at_level(logging.WARNING):
        checkpoint.read_config(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "exitdim (did you mean exit_dim?)" in message
    assert "exotic" not in message and "num_beams" not in message


@pytest.mark.parametrize("path", ["x" * 5000, "a\x00b", "\ud800"])
def test_impossible_directory(path: str) -> None:
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="no drafter checkpoint"):
        checkpoint.check_checkpoint(path)


def test_weights_replaced_while_they_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_then_cut(file: Path) -> list[checkpoint_files.StoredTensor]:
        found = list(checkpoint_files.stored_tensors(file))
        file.write_bytes(b"")
        return found

    monkeypatch.setattr(checkpoint, "stored_tensors", read_then_cut)
    with pytest.raises(checkpoint.UnreadableWeightsError, match="cannot be read as safetensors"):
        checkpoint.load_checkpoint(saved)


@pytest.mark.parametrize("offsets", [[-(2**63), 0, 0], [2**63 - 1, 0, 0], [0, 2**63 - 1, -(2**63)], [0, 9, 0]])
def test_map_with_wild_offsets(tmp_path: Path, offsets: list[int]) -> None:
    """Sums beyond 64 bits wrap around; what comes out is no map."""
    drafter = random_drafter(draft_vocab_size=3)
    drafter.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update(d2t=torch.tensor(offsets)))
    with pytest.raises(checkpoint.DraftVocabularyError, match="no draft vocabulary"):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [10**5000, "x" * 10**6, float("nan"), object()], ids=type)
def test_config_by_hand(value: object) -> None:
    with pytest.raises(ValueError, match="exit_dim must be an integer from 1 to 16777216, not") as caught:
        DrafterConfig(11, 6, value, 2)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400
