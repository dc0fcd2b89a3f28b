# SPDX-License-Identifier: Apache-2.0
"""`config.json` of a drafter: whatever stands in it, the drafter that the weights are, or a documented error."""

from pathlib import Path

import pytest
from hypothesis import example, given

from redrafter_vllm.checkpoint.config import MAX_DRAFT_LAYERS, MAX_SIZE
from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.checkpoint.io import check_checkpoint, read_config
from tests.fuzz.inputs import damaged_json, only, to_json
from tests.oracles import random_drafter

OWN = {
    "architectures": ["Drafter"],
    "model_type": "recurrent_drafting_drafter",
    "torch_dtype": "float32",
    "vocab_size": 11,
    "hidden_size": 6,
    "exit_dim": 12,
    "num_draft_layers": 2,
    "rnn": True,
}
TRIMMED = OWN | {"draft_vocab_size": 5}
TARGET = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6}
BLOCK = TARGET | {"redrafter": {"num_draft_layers": 2, "exit_dim": 12, "rnn": True}}
LONG = TARGET | {"redrafter": {"redrafter_num_layers": 2, "redrafter_is_rnn": True}}
FLAT = TARGET | {"redrafter_num_layers": 2, "redrafter_exit_dim": 12, "redrafter_is_rnn": True}
KEYS = (*TRIMMED, "redrafter", "num_layers", "is_rnn", *FLAT)


@pytest.mark.slow
@given(damaged_json([OWN, OWN, TRIMMED, BLOCK], KEYS))
@example(b"[" * 100_000)
@example(to_json(OWN | {"num_draft_layers": 10**9}))
@example(to_json(OWN | {"hidden_size": 10**12}))
@example(to_json(OWN | {"model_type": "x" * 5000 + "\n"}))
def test_beside_its_weights(scratch: Path, document: bytes) -> None:
    """Beside the weights of one drafter only that drafter's config is accepted."""
    if not (scratch / "model.safetensors").exists():
        random_drafter().save_pretrained(scratch)
    (scratch / "config.json").write_bytes(document)
    with only(CheckpointError):
        assert check_checkpoint(scratch) == random_drafter().config


@given(damaged_json([OWN, TRIMMED, BLOCK, LONG, FLAT], KEYS))
@example(b'{"redrafter_num_layers": 2, "vocab_size": 11, "hidden_size": true}')
def test_alone(scratch: Path, document: bytes) -> None:
    """What is accepted is a drafter that can be reckoned with."""
    (scratch / "config.json").write_bytes(document)
    with only(CheckpointError):
        config, _ = read_config(scratch)
        assert max(config.vocab_size, config.hidden_size, config.exit_dim) <= MAX_SIZE
        assert 0 <= config.num_draft_layers <= MAX_DRAFT_LAYERS
