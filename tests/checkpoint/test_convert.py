# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with all known tensor names load, and convert to Apple's."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint
from redrafter_vllm.checkpoint.convert import main
from tests.oracles import random_drafter

OWN_CONFIG = {
    "model_type": "recurrent_drafting_drafter",
    "vocab_size": 11,
    "hidden_size": 6,
    "exit_dim": 7,
    "num_draft_layers": 2,
    "rnn": True,
}
TARGET_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 6}
TARGET_TENSORS = {"lm_head.weight": torch.ones(11, 6), "model.embed_tokens.weight": torch.ones(11, 6)}


def plural(name: str) -> str:
    return name.replace("lm_head.", "lm_heads.").replace("input_proj.", "input_projs.")


def numbered(name: str) -> str:
    return name.replace("lm_head.", "0.")


def behind_prefix(name: str) -> str:
    return f"drafter.{name}"


def tensorrt_llm(name: str) -> str:
    if name == "lm_head.2.weight":
        return "drafter.lm_head.weight"
    return f"drafter.{name.replace('lm_head.', 'layers.')}"


BLOCK = {"num_draft_layers": 2, "exit_dim": 7, "rnn": True}
BLOCK_LONG = {"redrafter_num_layers": 2, "redrafter_exit_dim": 7, "redrafter_is_rnn": True}
SPELLINGS: dict[str, tuple[Callable[[str], str], dict, dict]] = {
    "apple": (str, OWN_CONFIG, {}),
    "plural": (plural, OWN_CONFIG, {}),
    "numbered": (numbered, OWN_CONFIG, {}),
    "prefix": (behind_prefix, OWN_CONFIG, {}),
    "inside target": (behind_prefix, {**TARGET_CONFIG, "redrafter": BLOCK}, TARGET_TENSORS),
    "inside target, plural": (lambda name: f"drafter.{plural(name)}", {**TARGET_CONFIG, "redrafter": BLOCK}, {}),
    "inside target, long keys": (behind_prefix, {**TARGET_CONFIG, "redrafter": BLOCK_LONG}, TARGET_TENSORS),
    "tensorrt-llm": (tensorrt_llm, {**TARGET_CONFIG, **BLOCK_LONG}, TARGET_TENSORS),
}


@pytest.fixture(params=SPELLINGS, ids=lambda name: name.replace(" ", "_"))
def spelled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rename, config, others = SPELLINGS[request.param]
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {rename(name): tensor for name, tensor in random_drafter(exit_dim=7).state_dict().items()}
    save_file({**tensors, **others}, directory / "model.safetensors")
    return directory


def assert_same(drafter: Drafter, expected: Drafter) -> None:
    assert drafter.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(drafter.state_dict()[name], tensor)


def test_loads(spelled: Path) -> None:
    assert checkpoint.check_checkpoint(spelled) == random_drafter(exit_dim=7).config
    assert_same(Drafter.from_pretrained(spelled), random_drafter(exit_dim=7))


def test_converts(spelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(spelled), str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new") in capsys.readouterr().out
    expected = random_drafter(exit_dim=7)
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == expected.state_dict().keys()
    assert_same(Drafter.from_pretrained(tmp_path / "new"), expected)


def test_block_takes_sizes_from_the_target(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TARGET_CONFIG, "redrafter": {"num_draft_layers": 2}}))
    expected = random_drafter()
    tensors = {f"drafter.{name}": tensor for name, tensor in expected.state_dict().items()}
    save_file({**tensors, **TARGET_TENSORS}, tmp_path / "model.safetensors")
    assert_same(Drafter.from_pretrained(tmp_path), expected)


def test_block_without_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TARGET_CONFIG, "redrafter": {}}))
    with pytest.raises(errors.CheckpointConfigError, match="lacks num_draft_layers"):
        checkpoint.check_checkpoint(tmp_path)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("spelling", ["apple", "numbered", "inside target"])
def test_pickle_converts_with_the_option(
    tmp_path: Path, wrap: str | None, spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rename, config, others = SPELLINGS[spelling]
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = random_drafter(exit_dim=7).bfloat16()
    tensors = {rename(name): tensor for name, tensor in expected.state_dict().items()} | others
    torch.save({wrap: tensors} if wrap else tensors, tmp_path / "model.pt")
    torch.save({"step": 3}, tmp_path / "optimizer.pt")

    assert main([str(tmp_path), str(tmp_path / "new")]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()

    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 0
    assert_same(Drafter.from_pretrained(tmp_path / "new", dtype=torch.bfloat16), expected)


class Payload:
    def __reduce__(self) -> tuple:
        return (print, ("code from a pickle ran",))


def test_pickle_never_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN_CONFIG))
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    output = capsys.readouterr()
    assert "ran" not in output.out
    assert "cannot be read as a pickle of plain tensors" in output.err


@pytest.mark.parametrize(
    ("content", "message"),
    [({"step": 3}, "no dictionary of tensors"), ({"rnn_u.bias": torch.zeros(6)}, "lacks"), ([1], "no dictionary")],
)
def test_pickle_of_something_else(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN_CONFIG))
    torch.save(content, tmp_path / "model.pt")
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert message in capsys.readouterr().err


def pickled(directory: Path, edit: Callable[[dict], object], name: str = "model.pt") -> Path:
    (directory / "config.json").write_text(json.dumps(OWN_CONFIG))
    tensors = dict(random_drafter(exit_dim=7).state_dict())
    edit(tensors)
    torch.save(tensors, directory / name)
    return directory


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (3, torch.zeros(1), "no dictionary of tensors"),
        ("lm_head.2.weight", torch.zeros(11, 7).to_sparse(), "other than a plain tensor"),
        ("lm_head.2.weight", torch.zeros(11, 7, device="meta"), "other than a plain tensor"),
        ("lm_head.2.weight", torch.zeros(1, 1).expand(11, 7), "other than a plain tensor"),
        ("lm_head.2.weight", torch.zeros(11, 7, dtype=torch.int8), "stored as torch.int8"),
        ("lm_head.2.weight", torch.zeros(11, 7, dtype=torch.complex64), "stored as torch.complex64"),
    ],
    ids=["number", "sparse", "meta", "expanded", "int8", "complex"],
)
def test_pickle_of_unusual_tensors(
    tmp_path: Path, name: object, value: torch.Tensor, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled(tmp_path, lambda tensors: tensors.update({name: value}))
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_pickle_of_a_view_that_claims_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(tmp_path, lambda tensors: tensors.update({"lm_head.2.weight": torch.zeros(1).expand(2**24, 7)}))
    (tmp_path / "config.json").write_text(json.dumps(OWN_CONFIG | {"vocab_size": 2**24}))
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert "lm_head.2.weight" in capsys.readouterr().err


def test_pickle_of_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.randn(2, 6, 6)
    pickled(tmp_path, lambda tensors: tensors.update({"rnn_u.weight": whole[0].T, "rnn_w.weight": whole[0]}))
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 0
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(tensors["rnn_u.weight"], whole[0].T) and torch.equal(tensors["rnn_w.weight"], whole[0])


def test_two_pickles_of_one_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(tmp_path, lambda tensors: None)
    pickled(tmp_path, lambda tensors: None, "pytorch_model.bin")
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert "twice" in (error := capsys.readouterr().err) and "pytorch_model.bin" in error


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_pickle_that_is_no_file_of_its_own(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pickled(source, lambda tensors: None).joinpath("model.pt").rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(source / "model.pt")
    else:
        (source / "model.pt").symlink_to(tmp_path / "elsewhere")
    assert main([str(source), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert {"pipe": "is a pipe", "link": "out of its directory"}[kind] in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02.", b"PK\x03\x04" + bytes(60), b"\x80\x04" + b"(" * 100_000, b"x" * 99]
)
def test_damaged_pickle(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(tmp_path, lambda tensors: None).joinpath("model.pt").write_bytes(data)
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert "model.pt" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_pickle_with_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN_CONFIG))
    tensors = random_drafter(exit_dim=7).state_dict()
    tensors["rnn_u.bias"][0] = torch.nan
    torch.save(dict(tensors), tmp_path / "model.pt")
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert "rnn_u.bias" in capsys.readouterr().err


def test_destination_must_be_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_drafter().save_pretrained(tmp_path)
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "give a new directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt"])
def test_destination_must_be_empty(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that is being copied has weights but no config yet."""
    random_drafter().save_pretrained(tmp_path / "source")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("mine")
    for destination in (tmp_path / "new", tmp_path / "new" / name):
        assert main([str(tmp_path / "source"), str(destination)]) == 1
        assert "give a new directory" in capsys.readouterr().err
    assert [file.read_text() for file in (tmp_path / "new").iterdir()] == ["mine"]


def test_destination_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_drafter().save_pretrained(tmp_path / "source")
    for destination in (tmp_path / "source" / "config.json" / "new", tmp_path / ("x" * 300)):
        assert main([str(tmp_path / "source"), str(destination)]) == 1
        assert "cannot be written" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_no_weights_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN_CONFIG))
    assert main([str(tmp_path), str(tmp_path / "new"), "--allow-pickle"]) == 1
    assert "neither safetensors nor pickled weights" in capsys.readouterr().err
