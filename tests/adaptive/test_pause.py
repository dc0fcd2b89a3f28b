# SPDX-License-Identifier: Apache-2.0
from redrafter_vllm.adaptive.pause import FIRST_PAUSE, LONGEST_PAUSE, TRIAL, DraftingPause


def pauses(tokens_of_step: list[float], seconds: float = 2.0) -> list[int]:
    """Lengths of the pauses, if the n-th step with a round emits so much and takes twice a step without drafts."""
    pause, found = DraftingPause(), list[int]()
    for tokens in tokens_of_step:
        if pause.is_paused:
            found.append(0)
        while pause.is_paused:
            pause.skip()
            found[-1] += 1
        pause.judge(tokens, seconds, 1.0, 1.0)
    return found


def test_what_pays_goes_on() -> None:
    assert pauses([2.5, 2.0, 3.0] * 100) == []


def test_what_loses_pauses_after_a_trial_twice_as_long_each_time() -> None:
    lengths = pauses([1.0] * (TRIAL * 8 + 1))
    assert lengths == [FIRST_PAUSE * 2**n for n in range(6)] + [LONGEST_PAUSE] * 2


def test_a_small_loss_takes_many_steps_to_be_seen() -> None:
    assert pauses([1.9] * 60) == []
    assert pauses([1.9] * 250)[:1] == [FIRST_PAUSE]


def test_single_bad_steps_do_not_count() -> None:
    assert pauses([3.0] * 5 + [1.0] * 5 + [3.0] * 30) == []


def test_after_a_good_time_a_pause_is_short_again() -> None:
    lengths = pauses([1.0] * (3 * TRIAL) + [4.0] * (4 * TRIAL) + [1.0] * 120)
    assert lengths[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert lengths[3] == FIRST_PAUSE


def test_many_requests_show_a_loss_in_fewer_steps() -> None:
    """A loss of 12 %: 16 requests have emitted enough after the trial, one has not."""
    for requests, is_paused in ((1, False), (16, True)):
        pause = DraftingPause()
        for _ in range(TRIAL):
            pause.judge(1.76 * requests, 2.0, requests, 1.0)
        assert pause.is_paused == is_paused
