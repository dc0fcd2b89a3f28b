# SPDX-License-Identifier: Apache-2.0
"""Parity with Apple's reference drafter on recorded cases, whose `beam_length` counts the root."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from redrafter_vllm import Drafter, DraftTree, beam_search
from tests.oracles import paths
from tests.paths import SHARED

GOLDEN = SHARED / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/case.json"))


def golden_paths(golden: dict[str, Tensor], row: int) -> set[tuple[int, ...]]:
    """Root-to-node paths of the packed tree, the root itself left out, read off the attention mask."""
    found = set()
    for node in range(int(golden["num_nodes"][row])):
        seen = golden["causal_mask"][row, node].nonzero().flatten().tolist()
        seen.sort(key=golden["position_offsets"][row].tolist().__getitem__)
        found.add(tuple(golden["packed_tokens"][row, seen[1:]].tolist()))
    return found - {()}


@pytest.mark.skipif(not CASES, reason="the golden cases are not beside this checkout")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_golden(case: Path) -> None:
    settings = json.loads((case / "case.json").read_text())
    golden = load_file(case / "golden.safetensors")
    width, length = settings["beam_width"], settings["beam_length"] - 1
    beams = beam_search(
        Drafter.from_pretrained(case),
        golden["embedding"],
        golden["context"],
        golden["init_token"],
        beam_width=width,
        beam_length=length,
        logits_top_k=50,
    )
    assert torch.equal(beams.paths(), golden["beams"][..., 1:])
    torch.testing.assert_close(beams.log_probs[:, -1], golden["token_log_probs"].sum(-1), atol=1e-4, rtol=0)

    tree = DraftTree.from_beams(beams, width * length)
    for row in range(settings["batch"]):
        # Apple's tree has the last step's beams and their prefixes; ours also those that were dropped on the way.
        assert set(paths(tree, row)) >= golden_paths(golden, row)
        best = {tuple(path[:depth]) for path in beams.paths()[row].tolist() for depth in range(1, length + 1)}
        assert best == golden_paths(golden, row)
