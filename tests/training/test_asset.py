# SPDX-License-Identifier: Apache-2.0
"""The committed target and drafters: files, size, precision and acceptance."""

import json
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from redrafter_training.run.evaluation import held_out_texts
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_vllm.model.drafter import Drafter
from tests.paths import ASSET

DRAFTERS = ("redrafter", "redrafter-slim")


def test_size_and_precision() -> None:
    assert sum(p.stat().st_size for p in ASSET.rglob("*") if p.is_file()) <= 16 * 1024 * 1024
    for folder in (ASSET, *(ASSET / name for name in DRAFTERS)):
        tensors = load_file(folder / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        assert all(t.isfinite().all() for t in tensors.values())
        report = json.loads((folder / "training.json").read_text())
        assert {"command", "versions", "config", "steps"} <= report.keys()


def test_tokenizer_is_lossless() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    assert len(tokenizer) == 2048
    text = Path(traceback.__file__).read_text(encoding="utf-8")
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_accepts_drafts_on_held_out_prompts(name: str) -> None:
    target = TargetModel(AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32))
    drafter = Drafter.from_pretrained(ASSET / name)
    report = json.loads((ASSET / name / "training.json").read_text())
    texts = held_out_texts(target, AutoTokenizer.from_pretrained(ASSET), prompts=12, new_tokens=48, seed=1)
    chain = measure(target, drafter, texts, Drafting(1, 4, 4))
    tree = measure(target, drafter, texts, Drafting(4, 4, 16))
    assert tree.tokens_per_step > chain.tokens_per_step > 1
    # Other prompts, fewer and shorter texts than in the report.
    assert tree.tokens_per_step == pytest.approx(report["held_out"]["4x4"]["tokens_per_step"], rel=0.25)
    assert all(a >= b for a, b in zip(tree.acceptance_by_depth, tree.acceptance_by_depth[1:], strict=False))
