# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint
from redrafter_vllm.utils.paths import PlaceError
from tests.checkpoint.damage import edit_config, edit_tensors, refused
from tests.oracles import random_drafter


@pytest.mark.parametrize(
    "shape",
    [{}, {"rnn": False}, {"exit_dim": 7}, {"num_draft_layers": 0}, {"exit_dim": 7, "num_draft_layers": 0}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact(tmp_path: Path, shape: dict, dtype: torch.dtype) -> None:
    drafter = random_drafter(**shape).to(dtype)
    drafter.save_pretrained(tmp_path / "made" / "on the way")
    loaded = Drafter.from_pretrained(tmp_path / "made" / "on the way", dtype=dtype)
    assert loaded.config == drafter.config
    assert loaded.state_dict().keys() == drafter.state_dict().keys()
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_bf16_loads_into_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    drafter = random_drafter().bfloat16()
    drafter.save_pretrained(tmp_path)
    loaded = Drafter.from_pretrained(str(tmp_path), dtype=dtype)
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype))


def test_written_layout_is_apples(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    wanted = {
        "model_type": "recurrent_drafting_drafter",
        "vocab_size": 11,
        "hidden_size": 6,
        "exit_dim": 12,
        "num_draft_layers": 2,
        "rnn": True,
    }
    assert wanted.items() <= config.items()
    assert {name: list(tensor.shape) for name, tensor in load_file(saved / "model.safetensors").items()} == {
        "lm_head.0.linear.weight": [12, 12],
        "lm_head.0.linear.bias": [12],
        "lm_head.1.linear.weight": [12, 12],
        "lm_head.1.linear.bias": [12],
        "lm_head.2.weight": [11, 12],
        "rnn_u.weight": [6, 6],
        "rnn_u.bias": [6],
        "rnn_w.weight": [6, 6],
    }
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_failed_save_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def half_written(_: object, file: Path, **__: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        random_drafter(seed=1).save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_shards(saved: Path) -> None:
    drafter = Drafter.from_pretrained(saved)
    tensors = load_file(saved / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, saved / file)
    (saved / "model.safetensors").unlink()

    with pytest.raises(errors.CheckpointNotFoundError, match="which belong together"):
        Drafter.from_pretrained(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = Drafter.from_pretrained(saved)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in drafter.state_dict().items())

    (saved / "model-1-of-2.safetensors").unlink()
    with pytest.raises(errors.CheckpointNotFoundError, match=r"names model-1-of-2\.safetensors, which is absent"):
        Drafter.from_pretrained(saved)
    drafter.save_pretrained(saved)
    Drafter.from_pretrained(saved)


def test_missing_tensor(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.pop("rnn_u.bias"))
    refused(saved, errors.MissingTensorsError, "lacks rnn_u.bias")


def test_surplus_tensor(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"lm_head.7.linear.weight": torch.zeros(1)}))
    refused(saved, errors.SurplusTensorsError, "lm_head.7.linear.weight", "does not imply")


def test_tensor_under_two_names(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"lm_heads.2.weight": torch.zeros(11, 12)}))
    refused(saved, errors.SurplusTensorsError, "lm_head.2.weight", "lm_heads.2.weight", "twice")


def test_wrong_shape(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"rnn_w.weight": torch.zeros(6, 5)}))
    refused(saved, errors.TensorShapeError, "rnn_w.weight", "[6, 5]", "[6, 6]")


def test_integer_weights(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"rnn_w.weight": torch.zeros(6, 6, dtype=torch.int8)}))
    refused(saved, errors.UnreadableWeightsError, "rnn_w.weight", "I8")


def test_damaged_file(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-8])
    refused(saved, errors.UnreadableWeightsError, "safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(saved: Path, value: float) -> None:
    edit_tensors(saved, lambda tensors: tensors["lm_head.1.linear.bias"].fill_(value))
    checkpoint.check_checkpoint(saved)
    with pytest.raises(errors.NonFiniteTensorError, match=r"lm_head\.1\.linear\.bias in .*NaN or infinite"):
        Drafter.from_pretrained(saved)


def test_overflow_of_the_requested_type(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors["rnn_u.bias"].fill_(1e6))
    Drafter.from_pretrained(saved, dtype=torch.bfloat16)
    with pytest.raises(errors.NonFiniteTensorError, match=r"rnn_u\.bias .* as torch\.float16"):
        Drafter.from_pretrained(saved, dtype=torch.float16)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "exit_dim", "num_draft_layers", "rnn"])
def test_missing_config_key(saved: Path, key: str) -> None:
    edit_config(saved, lambda config: config.pop(key))
    refused(saved, errors.CheckpointConfigError, f"lacks {key}")


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", -1), ("exit_dim", "12"), ("rnn", "yes"), ("hidden_size", None)]
)
def test_impossible_config_value(saved: Path, key: str, value: object) -> None:
    edit_config(saved, lambda config: config.update({key: value}))
    refused(saved, errors.CheckpointConfigError, key, repr(value))


def test_config_of_another_model(saved: Path) -> None:
    edit_config(saved, lambda config: config.update(model_type="llama"))
    refused(saved, errors.CheckpointConfigError, "'llama'", "recurrent_drafting_drafter")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_unreadable_config(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    refused(saved, errors.CheckpointConfigError, "JSON")


def test_missing_checkpoint(saved: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", errors.CheckpointNotFoundError, "no drafter checkpoint")
    (saved / "model.safetensors").unlink()
    refused(saved, errors.CheckpointNotFoundError, "holds no model.safetensors")
    (saved / "config.json").unlink()
    refused(saved, errors.CheckpointNotFoundError, "no config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "drafter.pth"])
def test_pickle(saved: Path, name: str) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / name)
    (saved / "model.safetensors").unlink()
    command = f"redrafter convert {saved} DST --allow-pickle"
    refused(saved, errors.PickleCheckpointError, name, command)


def test_another_targets_drafter(saved: Path) -> None:
    config = checkpoint.check_checkpoint(saved)
    checkpoint.check_against_target(config, hidden_size=6, vocab_size=11)
    with pytest.raises(errors.TargetMismatchError, match="hidden size 6 but the target has 8"):
        checkpoint.check_against_target(config, hidden_size=8, vocab_size=11)
    with pytest.raises(errors.TargetMismatchError, match="vocabulary size 11 but the target has 12"):
        checkpoint.check_against_target(config, hidden_size=6, vocab_size=12)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_nothing_but_a_drafter_is_replaced(tmp_path: Path, name: str) -> None:
    random_drafter().save_pretrained(tmp_path / "drafter")
    (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(PlaceError, match=rf"holds {name} of something else than a drafter"):
        random_drafter().save_pretrained(tmp_path)
    assert (tmp_path / name).read_text() == '{"model_type": "llama"}'
    assert {path.name for path in tmp_path.iterdir()} == {"drafter", name}
    random_drafter(seed=1).save_pretrained(tmp_path / "drafter")
