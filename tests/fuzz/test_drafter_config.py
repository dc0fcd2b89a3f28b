# SPDX-License-Identifier: Apache-2.0
"""`config.json` of a drafter: whatever stands in it, one of the documented errors or a drafter as its weights say."""

from pathlib import Path

from hypothesis import example, given

from redrafter_vllm.checkpoint import CheckpointError, check_checkpoint
from tests.drafter.oracles import random_drafter
from tests.fuzz.inputs import damaged_json, only

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


@given(damaged_json([OWN], tuple(OWN)))
@example(b"[" * 100_000)
def test_config(scratch: Path, document: bytes) -> None:
    if not (scratch / "model.safetensors").exists():
        random_drafter().save_pretrained(scratch)
    (scratch / "config.json").write_bytes(document)
    with only(CheckpointError):
        assert check_checkpoint(scratch) == random_drafter().config
