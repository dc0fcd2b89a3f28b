# SPDX-License-Identifier: Apache-2.0
"""Bad input to a real engine: one clear sentence, before any weights load."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE
from tests.models import HIDDEN, VOCAB, save_random_drafter


@pytest.fixture(autouse=True)
def no_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    def load_model(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were about to load")

    monkeypatch.setattr(GPUModelRunner, "load_model", load_model)
    monkeypatch.delenv("REDRAFTER_CHECKPOINT", raising=False)


@pytest.mark.parametrize(
    ("speculative", "sentence"),
    [
        (
            {**TREE, "beam_widht": 4},
            "Unknown ReDrafter option 'beam_widht' in the speculative config (did you mean 'beam_width'?)",
        ),
        ({**TREE, "beam_width": 0}, "beam_width=0 is out of range"),
        ({**TREE, "num_speculative_tokens": 200}, "num_speculative_tokens=200 is out of range"),
        ({**TREE, "model": "/nowhere/at/all"}, "'/nowhere/at/all' is not a directory"),
        ({**TREE, "model": "no-such/drafter"}, "'no-such/drafter' is neither a directory nor available from the hub"),
        ({"model": "redrafter", "quantization": "fp8"}, "Unknown ReDrafter option 'quantization'"),
        (
            {**TREE, "drafter_quantization": "int4"},
            "drafter_quantization='int4' is unknown; it must be null, 'none', 'fp8'",
        ),
        ({**TREE, "project_embedding": 1}, "project_embedding must be true or false, not 1"),
    ],
)
def test_options_and_paths(
    make_engine: MakeEngine, random_target: Path, speculative: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_engine(random_target, speculative)


def test_no_drafter_registered(make_engine: MakeEngine, random_target: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((random_target / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"No ReDrafter checkpoint for .*bare.*redrafter train "):
        make_engine(bare, TREE)


def test_a_drafter_of_another_target(make_engine: MakeEngine, random_target: Path, tmp_path: Path) -> None:
    other_vocab = save_random_drafter(tmp_path / "vocab", vocab_size=VOCAB + 1)
    other_hidden = save_random_drafter(tmp_path / "hidden", hidden_size=2 * HIDDEN)
    for drafter, what in ((other_vocab, "vocabulary size"), (other_hidden, "hidden size")):
        with pytest.raises(ValueError, match=f"drafter has {what}"):
            make_engine(random_target, {**TREE, "model": str(drafter)})


def test_a_target_is_not_a_drafter(make_engine: MakeEngine, random_target: Path) -> None:
    with pytest.raises(ValueError, match="describes no drafter"):
        make_engine(random_target, {**TREE, "model": str(random_target)})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2"),
        ({"attention_backend": "CPU_ATTN"}, "trees need their own attention backend, but CPU_ATTN was chosen"),
        ({"attention_config": {"backend": "CPU_ATTN"}}, "but CPU_ATTN was chosen"),
    ],
)
def test_engine_options(make_engine: MakeEngine, random_target: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_engine(random_target, TREE, **options)


def test_model_runner_v1(make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Like the environment variable of that name, which vLLM has already read in this process.
    monkeypatch.setattr("vllm.envs.VLLM_USE_V2_MODEL_RUNNER", False, raising=False)
    with pytest.raises(ValueError, match="needs Model Runner V2"):
        make_engine(random_target, TREE, max_num_seqs=3)
