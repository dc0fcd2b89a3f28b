# SPDX-License-Identifier: Apache-2.0
"""How many nodes a step gets on a GPU, which ones, and when rounds are left out; without a runner or a GPU."""

import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from redrafter_vllm.adaptive.pause import TRIAL
from redrafter_vllm.integration.worker.gpu_adaptive_trees import GpuAdaptiveTrees

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="replaces streams and events")

MAX_REQS, NODES = 3, 4
# Milliseconds by rows, where four rows cost what one does, and more cost far too much; a round is free.
FOUR_ROWS = [(1, 1.0), (4, 1.0), (16, 100.0)]
REQUESTS = {"a": 0, "b": 1}


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> GpuAdaptiveTrees:
    """Two requests that decode, in rows 0 and 1; their trees have been drawn once more than the host has seen."""
    from vllm.v1.worker.gpu.spec_decode import adaptive_verification as vllms

    for name in ("Stream", "Event", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(vllms, "_assign_draft_token_budget_compiled", vllms._assign_draft_token_budget)
    monkeypatch.setattr(vllms, "get_tp_group", lambda: SimpleNamespace(broadcast_object=lambda value, src: value))
    states = SimpleNamespace(
        num_speculative_steps=NODES,
        device=torch.device("cpu"),
        max_num_reqs=MAX_REQS,
        max_num_batched_tokens=64,
        req_id_to_index={**REQUESTS, "new": 2},
        num_computed_tokens_np=np.array([9, 9, 0]),
        prefill_len=SimpleNamespace(np=np.array([5, 5, 1])),
    )
    speculator: Any = SimpleNamespace(scores_prompt=np.zeros(MAX_REQS, dtype=np.bool_))
    made = GpuAdaptiveTrees(speculator, states, torch.zeros(MAX_REQS + 1, dtype=torch.int32), 1, 1000)
    made.set_cost_curves([(1, 0.0)], FOUR_ROWS)
    return made


def draw(manager: GpuAdaptiveTrees, *confidences: list[float]) -> None:
    """A round for rows 0 to B − 1."""
    assert manager.begins_round(True)
    batch: Any = SimpleNamespace(num_reqs=len(confidences), idx_mapping=torch.arange(len(confidences)))
    manager.record_confidences(torch.tensor(confidences), batch)


def step(manager: GpuAdaptiveTrees, *req_ids: str, drafts: int = NODES) -> tuple[int, list[int]]:
    """Tokens of a step, as the host counts them and each request's as the device does."""
    num_drafts = np.full(len(req_ids), drafts)
    count = manager.get_num_tokens(dict.fromkeys(req_ids, 1 + drafts), {req_id: [-1] * drafts for req_id in req_ids})
    lengths, _ = manager.compact_batch(num_drafts, 1 + num_drafts, np.arange(0, 100, 1 + drafts)[: len(req_ids) + 1])
    assert lengths.sum() == count
    rows = torch.tensor([manager.req_states.req_id_to_index[req_id] for req_id in req_ids])
    _, starts, total, *_ = manager.reallocate_drafts(list(req_ids), rows)
    assert total == count - len(req_ids)
    return count, starts[: len(req_ids) + 1].diff().tolist()


def test_the_host_chooses_how_many_and_the_device_which(manager: GpuAdaptiveTrees) -> None:
    draw(manager, [0.9, 0.8, 0.0, 0.0], [0.1, 0.1, 0.0, 0.0])
    # The host still has the trees before these, the device has the new ones.
    draw(manager, [0.1, 0.1, 0.0, 0.0], [0.9, 0.8, 0.7, 0.0])
    assert step(manager, "a", "b") == (4, [1, 3])
    draw(manager, [0.5, 0.1, 0.0, 0.0], [0.4, 0.1, 0.0, 0.0])
    assert step(manager, "a", "b") == (4, [2, 2])
    assert step(manager, "b", "a") == (4, [2, 2])
    # With one request two more rows are left, but its tree has no more nodes that the host knows of.
    assert step(manager, "a")[0] == 3


def test_a_round_that_was_left_out_leaves_no_drafts(manager: GpuAdaptiveTrees) -> None:
    draw(manager, [0.9, 0.9, 0.0, 0.0], [0.9, 0.9, 0.0, 0.0])
    assert not manager.begins_round(False)
    # vLLM calls this after every step, with what the last round has left behind.
    manager.record_confidences(torch.zeros(2, NODES), SimpleNamespace(num_reqs=2, idx_mapping=torch.arange(2)))  # type: ignore[arg-type]
    assert step(manager, "a", "b") == (2, [1, 1])
    # The estimates of before are there when drafting goes on.
    draw(manager, [0.9, 0.9, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0])
    assert step(manager, "a", "b") == (4, [3, 1])


def test_a_new_request_has_no_nodes_yet(manager: GpuAdaptiveTrees) -> None:
    draw(manager, [0.9, 0.5, 0.0, 0.0], [0.9, 0.5, 0.0, 0.0])
    manager.add_request(2)
    count, lengths = step(manager, "new", "a")
    # The host expects of it what is usual; the device gives the rows to the tree that there is.
    assert count == 4 and lengths == [1, 3]


def test_scores_of_a_prompt_need_exact_lengths(manager: GpuAdaptiveTrees) -> None:
    draw(manager, [0.9, 0.5, 0.0, 0.0], [0.9, 0.5, 0.0, 0.0])
    manager.add_request(2)
    manager.speculator.scores_prompt[2] = True
    assert step(manager, "new", "a") == (2, [1, 1])
    manager.req_states.num_computed_tokens_np[2] = 1
    assert step(manager, "new", "a")[0] == 4


def test_a_step_fits_into_one_chunk_of_logits(manager: GpuAdaptiveTrees) -> None:
    manager._max_total_logits = 3
    draw(manager, [0.9, 0.9, 0.0, 0.0], [0.9, 0.8, 0.0, 0.0])
    assert step(manager, "a", "b")[0] == 3


@pytest.mark.parametrize(("confidence", "pays"), [(0.9, True), (0.02, False)])
def test_drafting_pauses_where_less_is_expected_than_it_costs(
    manager: GpuAdaptiveTrees, confidence: float, pays: bool
) -> None:
    manager.set_cost_curves([(1, 0.5)], [(1, 1.0), (2, 1.1), (5, 1.2), (16, 3.0)])
    manager.add_request(0)
    batch: Any = SimpleNamespace(has_prefill=False, num_reqs=1)
    drawn = 0
    for _ in range(3 * TRIAL):
        drawn += manager.begins_round(True)
        manager.record_confidences(
            torch.full((1, NODES), confidence),
            SimpleNamespace(num_reqs=1, idx_mapping=torch.arange(1)),  # type: ignore[arg-type]
        )
        batch.num_tokens, _ = step(manager, "a")
        manager.end_verification(batch, torch.tensor([1]))
    # At first every request is expected to be as usual, so that it takes a few steps more than a trial.
    assert drawn == 3 * TRIAL if pays else TRIAL <= drawn < 2 * TRIAL
    counts = manager.take_counts()
    assert counts.skipped_rounds == 3 * TRIAL - drawn
    assert (counts.expected_thousandths > 1000) == pays
    times = re.search(r"([0-9.]+) times the estimated speed", str(manager.records.unlogged))
    assert times is not None and counts.plain_us / counts.taken_us == pytest.approx(float(times[1]), abs=0.005)
    assert counts.passed_us == 0 and "by the clock" not in str(manager.records.unlogged)
    assert "accepted," not in str(manager.records.unlogged) and "expected to be" in str(manager.records.unlogged)
