# SPDX-License-Identifier: Apache-2.0
"""How many nodes a step gets on a GPU, which ones, and when rounds are left out; without a runner or a GPU."""

import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from redrafter_vllm.adaptive.outlook import WHOLE_ROUND
from redrafter_vllm.adaptive.pause import TRIAL
from redrafter_vllm.adaptive.rounds import PLAIN_INTERVAL, PLAIN_RUN
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.drafting.step_timer import StepSize, TimedStep
from redrafter_vllm.integration.worker import gpu_adaptive_trees
from redrafter_vllm.integration.worker.gpu_adaptive_trees import GpuAdaptiveTrees

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="replaces streams and events")

MAX_REQS, NODES, LENGTH = 3, 4, 3
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
    for module in (vllms, gpu_adaptive_trees):
        group = SimpleNamespace(broadcast_object=lambda value, src: value, rank_in_group=0)
        monkeypatch.setattr(module, "get_tp_group", lambda group=group: group)
    states = SimpleNamespace(
        num_speculative_steps=NODES,
        device=torch.device("cpu"),
        max_num_reqs=MAX_REQS,
        max_num_batched_tokens=64,
        req_id_to_index={**REQUESTS, "new": 2},
        num_computed_tokens_np=np.array([9, 9, 0]),
        prefill_len=SimpleNamespace(np=np.array([5, 5, 1])),
    )
    speculator: Any = SimpleNamespace(
        scores_prompt=np.zeros(MAX_REQS, dtype=np.bool_),
        drafting=SimpleNamespace(beam_length=LENGTH, round_lengths=(1, 2, LENGTH)),
        survival=SurvivalEstimator(MAX_REQS, NODES, LENGTH, torch.device("cpu")),
        timer=SimpleNamespace(take_steps=list),
    )
    made = GpuAdaptiveTrees(speculator, states, torch.zeros(MAX_REQS + 1, dtype=torch.int32), 1, 1000)
    set_costs(made, [(1, 0.0)], FOUR_ROWS)
    return made


def set_costs(manager: GpuAdaptiveTrees, *curves: list[tuple[int, float]]) -> None:
    """As if steps without rounds were known at all loads."""
    manager.set_cost_curves(*curves)
    assert manager.rounds is not None
    manager.rounds._measured_loads = set(range(10))


def drawn_for(num_reqs: int) -> Any:
    return SimpleNamespace(
        num_reqs=num_reqs, idx_mapping=torch.arange(num_reqs), idx_mapping_np=np.arange(num_reqs, dtype=np.int32)
    )


def draw(manager: GpuAdaptiveTrees, *confidences: list[float]) -> None:
    """A step for rows 0 to B − 1, with prompts, so that it tells nothing, and the round behind it."""
    manager.end_verification(SimpleNamespace(has_prefill=True, num_reqs=len(confidences)), torch.tensor([]))  # type: ignore[arg-type]
    assert manager.begins_round(True)
    manager.record_confidences(torch.tensor(confidences), drawn_for(len(confidences)))


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
    manager.record_confidences(torch.zeros(2, NODES), drawn_for(2))
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
    set_costs(manager, [(1, 0.5)], [(1, 1.0), (2, 1.1), (5, 1.2), (16, 3.0)])
    manager.add_request(0)
    batch: Any = SimpleNamespace(has_prefill=False, num_reqs=1)
    drawn = 0
    manager.end_verification(SimpleNamespace(has_prefill=True, num_reqs=1), torch.tensor([1]))  # type: ignore[arg-type]
    for _ in range(3 * TRIAL):
        drawn += manager.begins_round(True)
        manager.record_confidences(torch.full((1, NODES), confidence), drawn_for(1))
        batch.num_tokens, _ = step(manager, "a")
        manager.end_verification(batch, torch.tensor([1]))
    # The host sees the first tree one round late, and then what such trees bring.
    assert drawn == (3 * TRIAL if pays else 2)
    counts = manager.take_counts()
    assert counts.skipped_rounds == 3 * TRIAL - drawn
    assert (counts.expected_thousandths > 1000) == pays
    times = re.search(r"([0-9.]+) times the estimated speed", str(manager.records.unlogged))
    assert times is not None and counts.plain_us / counts.taken_us == pytest.approx(float(times[1]), abs=0.005)
    assert counts.passed_us == 0 and "by the clock" not in str(manager.records.unlogged)
    assert "accepted," not in str(manager.records.unlogged) and "expected to be" in str(manager.records.unlogged)


@pytest.fixture
def two_kinds_of_rounds(manager: GpuAdaptiveTrees) -> GpuAdaptiveTrees:
    """A round of one beam step takes a tenth of a whole one; more than one node never pays."""
    manager._saved_by_short_rounds = {1: [(1, 0.9e-3)]}
    set_costs(manager, [(1, 1.0)], [(1, 1.0), (2, 1.01), (16, 100.0)])
    assert manager.speculator.survival is not None
    manager.speculator.survival.estimates.kinds[:] = torch.tensor([0, 1, 2, 2])
    return manager


def test_rounds_have_the_beam_steps_that_pay(two_kinds_of_rounds: GpuAdaptiveTrees) -> None:
    """What deeper nodes would bring is learned from whole rounds alone, of which there is one now and then."""
    manager, lengths = two_kinds_of_rounds, []
    for _ in range(3 * WHOLE_ROUND):
        draw(manager, [0.99, 0.5, 0.0, 0.0])
        lengths.append(manager.beam_steps)
        step(manager, "a")
        manager.end_verification(SimpleNamespace(has_prefill=False, num_reqs=1, num_tokens=2), torch.tensor([1]))  # type: ignore[arg-type]
    assert lengths[0] == LENGTH and lengths.count(1) > 2 * WHOLE_ROUND
    assert LENGTH in lengths[-WHOLE_ROUND:]
    assert manager.rounds is not None
    # The host saw each tree one step late, and knows which ones whole rounds have drawn.
    outlook = manager.rounds.outlook
    assert 0 < outlook._whole.number <= lengths.count(LENGTH)
    assert len(lengths) - 2 <= outlook.num_trees <= len(lengths)


def test_a_round_that_is_recorded_longer_counts_as_what_was_chosen(two_kinds_of_rounds: GpuAdaptiveTrees) -> None:
    """Rounds of one beam step are best, and of these there is no recording of their own."""
    manager = two_kinds_of_rounds
    manager.speculator.drafting.round_lengths = (2, LENGTH)  # type: ignore[misc]
    assert manager.rounds is not None
    for _ in range(WHOLE_ROUND - 2):  # so that the last one is not whole
        draw(manager, [0.99, 0.5, 0.0, 0.0])
        step(manager, "a")
    assert (manager.rounds.beam_steps, manager.beam_steps) == (1, 2)
    outlook = manager.rounds.outlook
    assert len(outlook._recent.drawn_by(1, WHOLE_ROUND)) == outlook.num_trees > 8


def test_a_new_request_is_not_taken_for_the_one_that_had_its_row(two_kinds_of_rounds: GpuAdaptiveTrees) -> None:
    manager = two_kinds_of_rounds
    assert manager.rounds is not None
    for _ in range(2):
        draw(manager, [0.9, 0.5, 0.0, 0.0])
    manager.add_request(0)
    step(manager, "a")
    assert manager.rounds.outlook.num_trees == 0
    # The copy that was on its way when the request came is of the one before, too.
    draw(manager, [0.8, 0.5, 0.0, 0.0])
    step(manager, "a")
    assert manager.rounds.outlook.num_trees == 0
    draw(manager, [0.8, 0.5, 0.0, 0.0])
    step(manager, "a")
    assert manager.rounds.outlook.num_trees == 1


def test_a_tree_is_remembered_once(two_kinds_of_rounds: GpuAdaptiveTrees) -> None:
    """The scheduler asks for drafts after every step, also where no round has been drawn."""
    manager = two_kinds_of_rounds
    assert manager.rounds is not None
    for _ in range(2):
        draw(manager, [0.9, 0.5, 0.0, 0.0])
    for _ in range(10):
        step(manager, "a")
        manager.begins_round(False)
    assert manager.rounds.outlook.num_trees == 1


def test_a_prompt_that_is_read_in_parts_has_no_tree(two_kinds_of_rounds: GpuAdaptiveTrees) -> None:
    """Rounds behind its first parts draw nothing for it."""
    manager = two_kinds_of_rounds
    assert manager.rounds is not None
    for _ in range(2):
        draw(manager, [0.0] * NODES)
    step(manager, "a")
    assert manager.rounds.outlook.num_trees == 0


def queue_step(manager: GpuAdaptiveTrees, num_tokens: int, *, has_prefill: bool = False) -> StepSize | None:
    """A step of one request and the round behind it, if there is one; its size, as the timer gets it."""
    batch: Any = SimpleNamespace(has_prefill=has_prefill, num_reqs=1, num_tokens=num_tokens)
    manager.end_verification(batch, torch.tensor([1]))
    if manager.begins_round(True):
        manager.end_drafting(1)
    manager.end_step()
    return manager.step_size


def test_steps_are_timed_by_what_their_duration_depends_on(manager: GpuAdaptiveTrees) -> None:
    assert queue_step(manager, 1) == StepSize(1, 1, after_round=False, beam_steps=LENGTH)
    assert queue_step(manager, 3) == StepSize(3, 1, after_round=True, beam_steps=LENGTH)
    assert queue_step(manager, 40, has_prefill=True) is None
    for _ in range(PLAIN_INTERVAL - 4):
        queue_step(manager, 3)
    assert queue_step(manager, 3) == StepSize(3, 1, after_round=True, beam_steps=None)  # no round: a run without any
    assert queue_step(manager, 1) == StepSize(1, 1, after_round=False, beam_steps=None)
    for _ in range(PLAIN_RUN - 2):
        queue_step(manager, 1)
    assert queue_step(manager, 1) == StepSize(1, 1, after_round=False, beam_steps=LENGTH)


def test_costs_follow_the_steps_of_the_first_rank(manager: GpuAdaptiveTrees, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that grows makes steps dearer than they were measured; every rank believes the same."""
    first = [
        TimedStep(StepSize(3, 1, after_round=True, beam_steps=LENGTH), 0.25e-3, 1.5e-3, 0.7e-3),
        TimedStep(StepSize(1, 1, after_round=False, beam_steps=None), None, 1.2e-3, 0.0),
    ]
    own = [TimedStep(StepSize(3, 1, after_round=True, beam_steps=LENGTH), 9.0, 9.0, 9.0)]
    set_costs(manager, [(1, 0.5)], FOUR_ROWS)
    manager.speculator.timer = SimpleNamespace(take_steps=lambda: own)  # type: ignore[assignment]
    group = SimpleNamespace(broadcast_object=lambda value, src: first if value is own and src == 0 else None)
    monkeypatch.setattr(gpu_adaptive_trees, "get_tp_group", lambda: group)
    costs = manager.costs
    assert costs is not None
    for _ in range(gpu_adaptive_trees.SHARED_INTERVAL - 1):
        queue_step(manager, 3)
    assert costs.verification(3, 3, 1)[0] == pytest.approx(1e-3)
    queue_step(manager, 3)
    assert costs.verification(3, 3, 1)[0] == pytest.approx(1.5e-3, rel=1e-3)
    assert costs.plain(1) == pytest.approx(1.2e-3, rel=1e-3)
    assert costs.drafting(1, LENGTH) == pytest.approx(0.7e-3)
    assert costs.between(1, is_drawn=True) == pytest.approx(0.25e-3)


def test_what_the_start_measures(manager: GpuAdaptiveTrees, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole round takes 2 ms in a step of vLLM's, and 1.5 ms replayed alone, where a short one takes 0.6."""
    from vllm.v1.worker.gpu.async_utils import StepTimingSample
    from vllm.v1.worker.gpu.spec_decode import adaptive_verification as vllms

    replayed = {1: 0.6e-3, LENGTH: 1.5e-3}
    monkeypatch.setattr(gpu_adaptive_trees, "time_recorded_rounds", lambda _, steps: [(1, replayed[steps])])
    choice = MagicMock()
    monkeypatch.setattr(vllms, "_assign_draft_token_budget_compiled", choice)
    manager.set_initial_cost_curves([StepTimingSample(5.0, 2.0, rows, 1, True) for rows in (1, 2)])
    costs = manager.costs
    assert costs is not None
    assert [costs.drafting(1, steps) for steps in (1, LENGTH)] == pytest.approx([1.1e-3, 2.0e-3])
    assert costs.plain(1) == pytest.approx(5.0e-3)
    # Compiled before a step waits for it: sizes of 1 are compiled apart from larger ones.
    assert {(len(call.args[1]), call.args[3]) for call in choice.call_args_list} == {(1, 1), (1, 2), (2, 1), (2, 2)}
