# SPDX-License-Identifier: Apache-2.0
"""Figures of a benchmark from its rounds, worked by hand."""

from typing import Any

import pytest

from redrafter_vllm.bench.figures import acceptance, rows
from tests.bench.example import NGRAM, OURS, PLAIN, rounds, turn


def row(concurrency: int, name: str) -> dict[str, Any]:
    [found] = [r for r in rows(rounds(), PLAIN) if (r["concurrency"], r["configuration"]) == (concurrency, name)]
    return found


def test_a_row_for_each_concurrency_and_configuration() -> None:
    found = [(r["concurrency"], r["configuration"]) for r in rows(rounds(), PLAIN)]
    assert found == [(n, name) for n in (1, 16) for name in (PLAIN, OURS, NGRAM)]


def test_the_speed_up_is_a_median_of_pairs_and_not_a_quotient_of_medians() -> None:
    ours = row(1, OURS)
    assert ours["speedup_by_round"] == pytest.approx([2.0, 2.2, 1.2])
    assert ours["speedup"]["median"] == pytest.approx(2.0)
    assert (ours["speedup"]["low"], ours["speedup"]["high"]) == pytest.approx((1.2, 2.2))
    assert ours["speedup"]["coverage"] == 0.75
    assert ours["tokens_per_second"]["median"] == pytest.approx(32 / 2.0)
    assert row(1, PLAIN)["tokens_per_second"]["median"] == pytest.approx(32 / 4.2)
    assert row(1, PLAIN)["speedup"]["median"] == 1.0
    assert row(16, OURS)["speedup"]["median"] == pytest.approx(0.8)


def test_times_of_requests() -> None:
    found = row(1, PLAIN)
    # 0.1 and 0.3 s; (1.1 − 0.1) / 10 and (2.3 − 0.3) / 20 s; 1.1 and 2.3 s.
    assert found["ttft"] == pytest.approx({"p50": 200.0, "p90": 280.0, "p99": 298.0})
    assert found["tpot"] == pytest.approx({"p50": 100.0, "p90": 100.0, "p99": 100.0})
    assert found["latency"]["p50"] == pytest.approx(1700.0)
    assert found["requests_per_second"] == pytest.approx(2 / 4.2)


def test_requests_of_one_token_have_no_time_per_further_token() -> None:
    alone = turn(PLAIN, 1, 1.0, tokens=[1, 1], latency=[0.1, 0.3], tokens_per_step=None)
    [found] = rows([[alone]], PLAIN)
    assert found["tpot"] is None and found["tokens_per_step"] is None
    assert found["ttft"]["p50"] == pytest.approx(200.0)


def test_steps_acceptance_memory_and_texts() -> None:
    ours = row(1, OURS)
    assert ours["tokens_per_step"] == 3.0
    assert ours["acceptance"] == [0.8, 0.4]
    assert ours["nodes_per_step"] == 4.0 and ours["skipped"] == 0.25
    assert row(1, NGRAM)["nodes_per_step"] == 1.5 and row(1, NGRAM)["skipped"] is None
    assert ours["memory"] == 3 << 29
    assert ours["milliseconds"] == {"target: layers": 20.0, "draft": 5.0}
    assert row(1, NGRAM)["same_requests"] == 1 and ours["same_requests"] == 2


def test_rounds_of_an_earlier_version_have_no_nodes() -> None:
    old = turn(PLAIN, 1, 1.0)
    del old["nodes_per_step"], old["skipped"]
    [found] = rows([[old]], PLAIN)
    assert found["nodes_per_step"] is None and found["skipped"] is None


def test_a_round_that_does_not_reach_a_depth_accepts_nothing_there() -> None:
    assert acceptance([[0.5, 0.2], [0.4], [0.6, 0.3]]) == [0.5, 0.2]
    assert acceptance([[], []]) == []


def test_no_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="no round"):
        rows([], PLAIN)
