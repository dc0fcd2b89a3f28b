# SPDX-License-Identifier: Apache-2.0
"""The GPU check: how stages measure, and the limits on their figures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check.stages import (
    adaptive,
    draft_round,
    identity,
    kernel_times,
    machine,
    speed,
)
from benchmarks.gpu_check.stages.engines import Difference, count_differences, differences, max_by_rounding
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.buffers import DraftRows
from tests.benchmarks.test_gpu_check import call


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"speeds": {8: (1.0, 1.04, 0.9, 0.9)}}, "batch 8: more than 3% slower than with 16 nodes"),
        ({"speeds": {1: (0.97, 0.9, 0.9, 0.9)}}, "batch 1: slower than plain vLLM"),
        ({"tokens": {"greedy": 3}}, "other tokens than plain vLLM's"),
        ({"tokens": {"real": [{}]}}, "other tokens than plain vLLM's"),
        ({"tokens": {"captured": False}}, "no CUDA graphs were captured"),
        ({"adapts": False}, "trees do not adapt"),
        ({"failed": {"7 nodes": "out of memory"}}, "7 nodes failed: out of memory"),
        ({"preemptions": 2}, "batch 1: 2 preemptions"),
    ],
)
def test_adaptive_trees_may_not_lose(change: dict[str, Any], fault: str | None) -> None:
    speeds = {1: (2.2, 2.2, 2.0, 1.8), 8: (1.5, 1.2, 1.5, 1.4), **change.get("speeds", {})}
    rows = [
        {"drafter": name, "batch": batch, "speedup": speedup, "preemptions": change.get("preemptions", 0)}
        | {"most_at_once": batch}
        for batch, own in speeds.items()
        for name, speedup in zip((adaptive.ADAPTIVE, *adaptive.FIXED), own, strict=True)
    ]
    tokens = {"greedy": 0, "real": [], "seeded": 0, "requests": 64, "captured": True} | change.get("tokens", {})
    figures = {"identity": tokens, "speed": {"results": rows, "failed": change.get("failed", {})}}
    found = adaptive.judge(figures, adapts=change.get("adapts", True), on_gpu=True)
    assert found.passed == (fault is None)
    assert fault is None or fault in found.summary
    assert "batch 1: " in found.summary and "16 nodes" in found.summary


def test_bandwidth_counts_reading_and_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    assert machine.run(call(tmp_path)).figures["bandwidth"] == 2 * machine.COPY_BYTES["cpu"]


def test_differences_and_near_ties() -> None:
    plain = [[1, 2, 3], [4, 5], [6, 7], [8]]
    other = [[1, 2, 3], [4, 9], [6, 8], [8, 8]]
    logprobs = [[], [{4: -0.1}, {5: -0.7, 9: -0.70004}], [{6: 0.0}, {7: -0.1, 5: -3.0}], [{8: 0.0}]]
    found = differences(plain, other, logprobs)
    assert [(d.request, d.place) for d in found] == [(1, 1), (2, 1), (3, 1)]
    assert count_differences(plain, other) == 3
    assert found[0].gap == pytest.approx(0.00004) and found[1].gap is None and found[2].gap is None
    assert identity._near(found[0]) and not identity._near(Difference(0, 0, 0.0004)) and not identity._near(found[1])


@pytest.mark.parametrize(
    ("exact", "coarse", "passed"),
    [
        ({}, {}, True),
        ({"greedy": 2, "seeded": 2}, {"greedy": 14, "real": [1]}, True),  # near-ties; twice the changes of plain vLLM
        ({"greedy": 1, "real": [{"gap": 0.2}]}, {}, False),
        ({"greedy": 3}, {}, False),
        ({"seeded": 3}, {}, False),
        ({}, {"greedy": 15}, False),
    ],
)
def test_rounding_passes_and_real_differences_fail(exact: dict[str, Any], coarse: dict[str, Any], passed: bool) -> None:
    same = {"requests": 64, "greedy": 0, "real": [], "seeded": 0, "plain_batch_1_to_8": 7}
    assert identity.judge({"float32": same | exact, "bfloat16": same | coarse}).passed is passed
    assert [max_by_rounding(itself) for itself in (0, 1, 7)] == [2, 2, 14]


@pytest.mark.parametrize(
    ("efficiency", "speedups", "passed"),
    [(0.9, (2.3, 0.99), True), (0.89, (2.3, 1.0), False), (0.95, (2.3, 0.97), False)],
)
def test_no_batch_size_may_be_slower(efficiency: float, speedups: tuple[float, float], passed: bool) -> None:
    assert speed.judge(speed_report(efficiency, speedups), "some-shape").passed is passed


def speed_report(efficiency: float, speedups: tuple[float, float]) -> dict[str, Any]:
    """Rows of the fastest drafter at batches 1 and 64, and of a slower one at 1."""
    row = {"drafter": speed.FASTEST, "nodes": 16, "decode_speedup": 2.4, "efficiency": efficiency}
    row |= {"efficiency_ceiling": 0.95, "preemptions": 0}
    rows = [row | {"batch": b, "speedup": s, "most_at_once": b} for b, s in zip((1, 64), speedups, strict=True)]
    slower = rows[0] | {"drafter": speed.AS_STORED, "efficiency": 0.85, "speedup": 2.2}
    return {"results": [rows[0], slower, rows[1]], "failed": {}}


@pytest.mark.parametrize("fault", ["failed", "preempted", "queued", "nothing"])
def test_speed_fails_with_missing_ways_or_requests(fault: str) -> None:
    report = speed_report(0.92, (2.3, 1.0))
    assert speed.judge(report, "some-shape").passed
    if fault == "failed":
        report["failed"] = {speed.AS_STORED: "out of memory"}
    elif fault == "preempted":
        report["results"][2]["preemptions"] = 1
    elif fault == "queued":
        report["results"][2]["most_at_once"] = 60
    else:
        report["results"] = []
    assert not speed.judge(report, "some-shape").passed


def test_kernel_times_of_a_real_tree(tmp_path: Path) -> None:
    sizes = kernel_times.Sizes(batch=2, context=20, nodes=5)
    batch = kernel_times.step_of(sizes, 2, "cpu")
    assert batch.query_start_loc.tolist() == [0, 6, 12] and batch.seq_lens.tolist() == [26, 26]
    # Nodes 0 and 1 are children of the root, 2 and 3 of node 0, 4 of node 1.
    paths = [[0], [1], [0, 2], [0, 3], [1, 4]]
    assert [row.nonzero().flatten().tolist() for row in batch.ancestors[1]] == paths
    outcome = kernel_times.run(call(tmp_path / "kernel_times"))
    assert outcome.passed and {case["rival"] for case in outcome.figures["cases"]} == {None}
    assert all(case["seconds"] > 0 and case["floor"] > 0 for case in outcome.figures["cases"])


def test_caches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough layers to exceed the size of any cache of the device, but not more than the target has."""
    sizes = kernel_times.Sizes(batch=2, context=20, nodes=5)
    bytes_of_one = 2 * 26 * 2 * 8 * 64 * 4
    for min_bytes, layers in ((0, 1), (bytes_of_one, 2), (1 << 40, 4)):
        monkeypatch.setitem(kernel_times.MIN_CACHE_BYTES, "cpu", min_bytes)
        (case,) = kernel_times.attention_cases("cpu", "llama-0.1b", sizes)
        assert len({part.args[1].data_ptr() for part in case.calls}) == layers


def test_only_the_served_form_is_judged_and_errors_are_kept() -> None:
    def fails() -> None:
        raise RuntimeError("no image")

    assert kernel_times.Timed("ours alone", False, 1.0, 2.0, 1.0).passed
    assert not kernel_times.Timed("as served", True, 1.0, 2.0, 1.0).passed
    assert kernel_times.Timed("as served", True, 1.0, 1.2, 1.0).passed
    found = kernel_times.timed(kernel_times.Case("x", [fails], 8), "cpu", 2.0)
    assert (found.passed, found.seconds, found.floor) == (False, None, 4.0) and "RuntimeError: no image" in str(found)


@pytest.mark.parametrize(("speed_", "passed"), [(1.0, True), (1e18, False)])
def test_drafting_round_against_its_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed_: float, passed: bool
) -> None:
    """Only the drafter as stored: INT8 needs vLLM's process groups, which an engine in this process may have."""
    monkeypatch.setattr(draft_round, "LAYOUTS", {draft_round.AS_STORED: draft_round.LAYOUTS[draft_round.AS_STORED]})
    monkeypatch.setattr(draft_round, "DRAFTINGS", draft_round.DRAFTINGS[:1])
    monkeypatch.setattr(draft_round, "bandwidth", lambda call: speed_)
    rounds: list[Any] = []
    monkeypatch.setattr(draft_round, "seconds", lambda calls, device: rounds.append(calls[0]()) or 1.0)
    outcome = draft_round.run(call(tmp_path / "draft_round"))
    assert outcome.passed is passed and len(rounds) == len(outcome.figures["rounds"]) == 1


def test_a_failing_drafter_does_not_stop_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(name: str, *_: Any) -> Any:
        yield draft_round.Row(name, 4, 1, 1.0, 1.0)
        if name == draft_round.AS_STORED:
            yield draft_round.Row(name, 4, 4, 2.0, 1.0)
        raise NotImplementedError("no INT8 kernel")

    monkeypatch.setattr(draft_round, "measured", measured)
    monkeypatch.setattr(draft_round, "bandwidth", lambda call: 1.0)
    outcome = draft_round.run(call(tmp_path / "draft_round"))
    assert not outcome.passed and len(outcome.figures["rounds"]) == 3
    assert outcome.figures["failed"] == dict.fromkeys(draft_round.LAYOUTS, "NotImplementedError: no INT8 kernel")


def test_a_round_stores_its_trees() -> None:
    drafting, kept = DraftingConfig(2, 2), DraftRows(3, 4, torch.device("cpu"))
    with (
        torch.inference_mode(),
        draft_round.packed(draft_round.AS_STORED, DrafterConfig(50, 16, 32, 1), "cpu") as drafter,
    ):
        inputs = drafter.token_inputs(torch.randn(50, 16, dtype=torch.bfloat16))
        draft_round.round_of(drafter, inputs, drafting, kept)()
    # Two beams of two may share their first token.
    assert all(nodes in (3, 4) for nodes in kept.num_nodes[:3].tolist()) and kept.num_nodes[3] == 0
