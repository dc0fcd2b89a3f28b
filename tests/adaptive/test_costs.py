# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts

MEASURED = MeasuredCosts(
    verification=[(1, 0.010), (2, 0.012), (4, 0.016), (8, 0.024)], per_request=0.001, drafting=[(1, 0.002), (4, 0.005)]
)


def test_straight_between_the_measured_sizes_and_beyond_them() -> None:
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    rows = costs.verification(1, 10, 2) - 0.002
    assert rows.tolist() == pytest.approx([0.010, 0.012, 0.014, 0.016, 0.018, 0.020, 0.022, 0.024, 0.026, 0.028])
    assert [costs.drafting(n) for n in (1, 2, 4, 8)] == pytest.approx([0.002, 0.003, 0.005, 0.009])


def test_a_measurement_that_falls_with_size_is_taken_for_noise() -> None:
    costs = StepCosts(MeasuredCosts([(1, 0.010), (2, 0.030), (4, 0.020)], 0, [(1, 0.002)]), 4, 1)
    assert costs.verification(1, 4, 1).tolist() == pytest.approx([0.010, 0.020, 0.020, 0.020])
    costs = StepCosts(MEASURED, max_rows=8, max_requests=1)
    for _ in range(20):
        costs.observe_verification(4, 1, 0.034)
        costs.observe_verification(8, 1, 0.025)
    found = costs.verification(4, 7, 1).tolist()
    assert found == pytest.approx([0.025] * 4, rel=0.05) and len(set(found)) == 1


def test_steps_of_a_size_correct_it_and_its_neighbours() -> None:
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    before = costs.verification(1, 20, 1)
    for _ in range(200):
        costs.observe_verification(2, 1, before[1] * 1.2)
        costs.observe_verification(20, 1, before[19] * 1.6)
    factors = costs.verification(1, 20, 1) / before
    assert factors[1] == pytest.approx(1.2)
    assert factors[19] == pytest.approx(1.6)
    assert 1.2 < factors[4] < factors[8] < 1.6
    for _ in range(200):
        costs.observe_drafting(4, 0.010)
    assert costs.drafting(4) == pytest.approx(0.010)


def test_sizes_that_have_not_been_seen() -> None:
    costs = StepCosts(MEASURED, max_rows=8, max_requests=4)
    seen = []
    while (rows := costs.unseen(2, 6)) is not None:
        seen.append(rows)
        costs.observe_verification(rows, 1, 0.02)
    assert seen == [2, 3, 4, 5, 6]
    assert costs.unseen(1, 100) == 1 and costs.unseen(7, 100) == 7


def test_one_slow_step_says_little() -> None:
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    usual = float(costs.verification(4, 4, 1)[0])
    for _ in range(20):
        costs.observe_verification(4, 1, usual)
    costs.observe_verification(4, 1, 100 * usual)
    assert float(costs.verification(4, 4, 1)[0]) < 1.12 * usual
    for _ in range(20):
        costs.observe_verification(4, 1, usual)
    assert float(costs.verification(4, 4, 1)[0]) < 1.02 * usual


def test_what_is_old_is_forgotten() -> None:
    """A size that was slow long ago is tried again, and until then has the factor of its neighbours."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    measured = costs.verification(1, 20, 1)
    for _ in range(20):
        costs.observe_verification(12, 1, 1.9 * measured[11])
    assert costs.unseen(12, 12) is None
    for _ in range(600):
        costs.observe_verification(10, 1, measured[9])
    assert costs.unseen(12, 12) == 12
    assert float(costs.verification(12, 12, 1)[0]) == pytest.approx(measured[11], rel=0.03)


def test_sizes_beyond_the_largest_cost_as_much_as_it() -> None:
    costs = StepCosts(MEASURED, max_rows=8, max_requests=4)
    assert costs.verification(8, 9, 1).tolist() == pytest.approx([0.025, 0.025])
    costs.observe_verification(50, 1, 0.025)
    assert costs.drafting(50) == pytest.approx(0.005)


def test_the_time_between_steps() -> None:
    costs = StepCosts(MEASURED, max_rows=8, max_requests=8)
    assert costs.between(1, is_drawn=True) == 0
    costs.observe_between(1, 0.002, is_drawn=False)
    assert costs.between(8, is_drawn=True) == costs.between(8, is_drawn=False) == 0.002
    costs.observe_between(8, 0.008, is_drawn=False)
    costs.observe_between(2, 0.005, is_drawn=True)
    found = [costs.between(n, is_drawn=False) for n in (1, 2, 4, 8, 100)]
    assert found == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008])
    assert costs.between(8, is_drawn=True) == 0.005
    costs.observe_between(1, 100.0, is_drawn=False)  # the process was stopped
    assert costs.between(1, is_drawn=False) == pytest.approx(0.0021)


def test_the_first_time_between_steps_may_be_one_of_compiling() -> None:
    """It counts for at most two steps, so that what follows it corrects it soon."""
    costs = StepCosts(MEASURED, max_rows=8, max_requests=8)
    costs.observe_between(1, 100.0, is_drawn=True)
    assert costs.between(1, is_drawn=True) == pytest.approx(2 * costs.plain(1))


def test_rounds_of_fewer_beam_steps() -> None:
    """A whole round for one request takes 2 ms, 1.2 of them without the further steps, of which there are 4."""
    drafting, first = [(1, 0.002), (4, 0.005)], [(1, 0.0012), (4, 0.005)]
    costs = StepCosts(MeasuredCosts(MEASURED.verification, 0.0, drafting, first, beam_length=5), 8, 4)
    assert [costs.drafting(1, steps) for steps in (1, 2, 5)] == pytest.approx([0.0012, 0.0014, 0.002])
    assert costs.drafting(1) == costs.drafting(1, 5)
    assert costs.drafting(4, 1) == pytest.approx(0.005)


def test_what_rounds_take_beyond_their_measurement_is_a_time_and_no_factor() -> None:
    """The engine's own work around a round is the same for one beam step and for all, for 1 and for 4 requests."""
    drafting, first = [(1, 0.002), (4, 0.005)], [(1, 0.0012), (4, 0.002)]
    costs = StepCosts(MeasuredCosts(MEASURED.verification, 0.0, drafting, first, beam_length=5), 8, 4)
    for _ in range(200):
        costs.observe_drafting(1, 0.0022, 1)
    assert [costs.drafting(1, steps) for steps in (1, 2, 5)] == pytest.approx([0.0022, 0.0024, 0.003])
    assert [costs.drafting(4, steps) for steps in (1, 5)] == pytest.approx([0.003, 0.006])
    assert costs.drafting(1, 1) >= 0.0011  # however short rounds seem to be, half of what was measured is left


def test_what_is_known_of_a_size_holds_for_its_neighbours() -> None:
    """All steps take half as long again as measured, one by chance twice as long: its size hardly seems dearer."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    measured = costs.verification(1, 20, 1)
    for _ in range(10):
        for rows in (10, 14, 17):
            costs.observe_verification(rows, 1, 1.5 * measured[rows - 1])
    costs.observe_verification(12, 1, 2.0 * measured[11])
    factors = costs.verification(1, 20, 1) / measured
    assert factors[11] / factors[9] < 1.06 and factors[9] == pytest.approx(1.5, rel=0.05)
    for _ in range(100):
        costs.observe_verification(12, 1, 2.0 * measured[11])
    assert (costs.verification(12, 12, 1)[0] / measured[11]) > 1.75


def test_rounds_of_copies_alone() -> None:
    """They are measured: 0.5 ms, where the first of 5 beam steps takes 0.7 ms more, and the others 0.2 ms each."""
    rounds = [(1, 0.002)], [(1, 0.0012)], [(1, 0.0005)]
    costs = StepCosts(MeasuredCosts(MEASURED.verification, 0.0, *rounds, beam_length=5), 8, 1)
    assert costs.fewest_beam_steps == 0
    assert [costs.drafting(1, steps) for steps in (0, 1, 2, 5)] == pytest.approx([0.0005, 0.0012, 0.0014, 0.002])
    assert StepCosts(MEASURED, 8, 1).fewest_beam_steps == 1


def test_steps_without_drafting_have_factors_of_their_own() -> None:
    """They say nothing of steps after rounds, and those nothing of them, unless there is nothing else."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    before, plain = costs.verification(4, 8, 4), costs.plain(4)
    assert plain == before[0] == pytest.approx(0.020)
    costs.observe_plain(4, plain * 1.5)
    assert costs.plain(4) == pytest.approx(plain * 1.5)
    assert (costs.verification(4, 8, 4) / before).tolist() == pytest.approx([1.5] * 5)
    costs.observe_verification(6, 4, before[2] * 2)
    assert (costs.verification(4, 8, 4) / before).tolist() == pytest.approx([2] * 5)
    assert costs.plain(4) == pytest.approx(plain * 1.5)
    assert costs.unseen(5, 8) == 5
    other = StepCosts(MEASURED, max_rows=20, max_requests=8)
    other.observe_verification(6, 4, before[2] * 2)
    assert other.plain(4) == pytest.approx(plain * 2)


def test_the_pace_of_the_machine_is_that_of_all_steps() -> None:
    """Steps without drafts are seen when the machine is slow, and then only others, as it gets twice as fast."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    plain, after_round = costs.plain(1), costs.verification(4, 4, 1)[0]
    for _ in range(10):
        costs.observe_plain(1, 2.0 * plain)
        costs.observe_verification(4, 1, 2.2 * after_round)
    assert costs.plain(1) == pytest.approx(2.0 * plain, rel=0.02)
    for _ in range(100):
        costs.observe_verification(4, 1, 1.1 * after_round)
    assert costs.verification(4, 4, 1)[0] == pytest.approx(1.1 * after_round, rel=0.01)
    # A sixth of the change, as a logarithm, is taken for one of the sizes that were seen.
    assert costs.plain(1) == pytest.approx(2 ** (1 / 6) * plain, rel=0.03)


def test_noise_moves_neither_the_pace_nor_the_sizes() -> None:
    """Of steps with a tenth of noise, few are without drafts; after thousands both are still what they were."""
    rng = np.random.default_rng(7)
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    plain, after_round = costs.plain(1), costs.verification(4, 4, 1)[0]
    ratios = []
    for step in range(6000):
        noise = math.exp(rng.normal(0, 0.1))
        if step % 256 < 3:
            costs.observe_plain(1, plain * noise)
        else:
            costs.observe_verification(4, 1, 1.3 * after_round * noise)
        ratios.append(costs.plain(1) / costs.verification(4, 4, 1)[0] * 1.3 * after_round / plain)
    assert np.mean(ratios[:3000]) == pytest.approx(1, abs=0.05)
    assert np.mean(ratios[3000:]) == pytest.approx(1, abs=0.03)


def test_steps_of_one_kind_get_dearer() -> None:
    """Those after rounds by a tenth, of 253 in 256; after two further runs of the others these are not believed to."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    plain, after_round = costs.plain(1), costs.verification(4, 4, 1)[0]
    believed = []
    for step in range(2048):
        if step % 256 < 3:
            costs.observe_plain(1, plain)
        else:
            costs.observe_verification(4, 1, (1.3 if step < 1024 else 1.43) * after_round)
        believed.append(costs.plain(1) / plain)
    assert believed[1023] == pytest.approx(1, abs=0.01)
    assert believed[1279] < 1.1  # some of it is taken for the machine's
    assert believed[1536:] == pytest.approx([1] * 512, abs=0.03)
    assert costs.verification(4, 4, 1)[0] == pytest.approx(1.43 * after_round, rel=0.01)


def test_a_step_without_drafts_takes_no_longer_than_one_after_a_round() -> None:
    """What was seen of it when something else ran does not count against it."""
    costs = StepCosts(MEASURED, max_rows=20, max_requests=8)
    plain, after_round = costs.plain(1), costs.verification(1, 1, 1)[0]
    for _ in range(10):
        costs.observe_verification(1, 1, 1.1 * after_round)
        costs.observe_plain(1, 1.5 * plain)
    assert costs.plain(1) == pytest.approx(costs.verification(1, 1, 1)[0])
