# SPDX-License-Identifier: Apache-2.0
"""Invalid sizes, values and keys in a drafter's config."""

import json
import logging
from pathlib import Path

import pytest

from redrafter_vllm import DrafterConfig
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint
from redrafter_vllm.checkpoint.config import tensor_shapes
from tests.checkpoint.damage import edit_config, refused
from tests.oracles import random_drafter

SIZES = ("vocab_size", "hidden_size", "exit_dim", "num_draft_layers")


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [10**9, 10**12, 2**31, 2**32, 10**20, 10**30, 10**90, -(10**30), 1e9, True, "8", [8]])
def test_sizes_out_of_range(saved: Path, key: str, value: object) -> None:
    edit_config(saved, lambda config: config.update({key: value}))
    refused(saved, errors.CheckpointConfigError, key)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("vocab_size", errors.TensorShapeError),
        ("num_draft_layers", errors.MissingTensorsError),
        ("hidden_size", errors.MissingTensorsError),  # it then differs from half of exit_dim: an input projection
        ("exit_dim", errors.MissingTensorsError),  # also
    ],
)
@pytest.mark.parametrize("value", [900, 2**24])
def test_sizes_that_the_weights_do_not_have(
    saved: Path, key: str, error: type[errors.CheckpointError], value: int
) -> None:
    """In range, but not those of the file: refused without allocating a tensor of that size."""
    if key == "num_draft_layers":
        value = min(value, 1000)
    edit_config(saved, lambda config: config.update({key: value}))
    refused(saved, error)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null", "12.0"])
def test_numbers_that_are_no_sizes(saved: Path, value: str) -> None:
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"exit_dim": 12', f'"exit_dim": {value}'))
    refused(saved, errors.CheckpointConfigError, "exit_dim")


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
    refused(saved, errors.CheckpointConfigError, word)


@pytest.mark.parametrize("value", ["x" * 100_000, "a\nb\u202e", [[[[[[["deep"]]]]]]], {"a": ["x" * 1000] * 1000}])
def test_long_values_in_messages(saved: Path, value: object) -> None:
    edit_config(saved, lambda config: config.update(model_type=value))
    refused(saved, errors.CheckpointConfigError, "model_type")
    edit_config(saved, lambda config: config.update(model_type="recurrent_drafting_drafter", rnn=value))
    refused(saved, errors.CheckpointConfigError, "rnn must be true or false")


def test_one_key_set_twice(tmp_path: Path) -> None:
    target = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6}
    block = {"num_draft_layers": 2, "num_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(target | {"redrafter": block}))
    refused(
        tmp_path,
        errors.CheckpointConfigError,
        "num_draft_layers and num_layers set num_draft_layers to different values",
    )
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
    """The target's own keys are ignored."""
    target = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6, "exotic_key": 3, "redrafter_num_beams": 4}
    (tmp_path / "config.json").write_text(json.dumps(target | extra))
    with caplog.at_level(logging.WARNING):
        checkpoint.read_config(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "exitdim (did you mean exit_dim?)" in message
    assert "exotic" not in message and "num_beams" not in message


@pytest.mark.parametrize("value", [10**5000, "x" * 10**6, float("nan"), object()], ids=type)
def test_config_by_hand(value: object) -> None:
    with pytest.raises(ValueError, match="exit_dim must be an integer from 1 to 16777216, not") as caught:
        DrafterConfig(11, 6, value, 2)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400
