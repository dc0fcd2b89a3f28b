# SPDX-License-Identifier: Apache-2.0
"""How soon trees adapt: what steps are compared with, windows, the check. The engine's part is in tests/engine."""

from pathlib import Path

import pytest

from benchmarks.serving.adaptation import (
    ADAPTED,
    NEIGHBOURS,
    Options,
    Step,
    grid,
    passed,
    speed_when_adapted,
    undrafted_seconds,
    windows,
)

PLAIN = Step(1.0, 1, is_drafted=False)


def test_a_step_is_compared_with_the_nearest_ones_without_drafts() -> None:
    # The machine gets slower by half in the middle; one step without drafts was disturbed.
    early, late = [PLAIN] * NEIGHBOURS, [Step(1.5, 1, False)] * NEIGHBOURS
    steps = [Step(2.0, 2, True), *early, Step(9.0, 1, False), *late, Step(3.0, 1, True)]
    seconds = undrafted_seconds(steps)
    assert seconds[0] == seconds[5] == 1.0
    assert seconds[-1] == seconds[-5] == 1.5


def test_steps_that_all_drafted_have_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="every step drafted"):
        undrafted_seconds([Step(1.0, 2, True)] * 3)


def test_figures_of_one_engine() -> None:
    # Up to the 200th step every second one drafts and takes half as long again; half of those emit a second token.
    drafted, lost = Step(1.5, 2, True), Step(1.5, 1, True)
    found = windows([PLAIN, drafted, PLAIN, lost] * (ADAPTED // 4) + [PLAIN] * 120, requests=1)
    assert found["at_first"] == {"first_step": 0, "drafted": 0.5, "tokens_per_step": 1.25, "speed": 1.0}
    assert found["adapted"] == {"first_step": ADAPTED, "drafted": 0, "tokens_per_step": 1, "speed": 1}
    assert [window["first_step"] for window in found["windows"]] == [0, 50, 100, 150, 200, 250]


def test_text_that_takes_too_few_steps() -> None:
    """Copies may make most tokens where answers repeat themselves."""
    with pytest.raises(ValueError, match="there were 200 steps"):
        windows([PLAIN] * ADAPTED, requests=1)


def test_tokens_count_by_request() -> None:
    found = windows([Step(1.0, 4, False)] * 300 + [Step(1.25, 5, True)] * 100, requests=4)
    assert found["adapted"]["tokens_per_step"] == pytest.approx(1.125)
    assert found["adapted"]["speed"] == pytest.approx(1.0)


def test_the_check_is_on_the_median_over_engines_behind_the_first_steps() -> None:
    def engine(seconds: float) -> dict[str, object]:
        rest = [PLAIN] * 50 + [Step(seconds, 1, True)] * 50
        return windows([Step(3.0, 1, True)] * ADAPTED + rest, requests=1)

    def report(*seconds: float) -> dict[str, object]:
        config = {"check": True, "requests": 1, "temperature": 1.0}
        return {"config": config, "results": [engine(each) for each in seconds]}

    assert passed(report(1.02, 1.04, 2.0))
    assert speed_when_adapted(report(1.02, 1.04, 2.0)) == pytest.approx(100 / 102)
    assert not passed(report(1.02, 1.08, 1.08))
    assert not passed(report(1.08) | {"config": {"check": True}})
    assert passed(report(1.08) | {"config": {"check": False}})
    assert grid(report(1.02, 1.04)).rows[-1] == ["from 200 on", "50%", "1.00", "0.985", "0.980 to 0.990"]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"engines": 0}, "at least 1"), ({"max_tokens": 399}, "at least 400"), ({"requests": 0}, "1")],
)
def test_options_that_show_nothing(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(Path("target"), Path("drafter"), **given)
