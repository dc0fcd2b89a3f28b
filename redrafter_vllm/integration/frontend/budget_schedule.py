# SPDX-License-Identifier: Apache-2.0
"""Checks of vLLM's schedule of node budgets by batch size, before an engine is built with it.

vLLM itself expands the schedule only when the engine has loaded, cuts budgets above the number of draft slots, and
accepts everything that `int` accepts.
"""

from itertools import pairwise
from typing import Any

from redrafter_vllm.config import OptionError
from redrafter_vllm.utils.messages import shown

NAME = "num_speculative_tokens_per_batch_size"
_FORM = "a list of [first batch, last batch, nodes], such as [[1, 4, 16], [5, 16, 7], [17, 1024, 0]]"


def check_schedule(schedule: Any, num_slots: int) -> None:
    """Check `schedule`, with at most `num_slots` nodes; None is no schedule.

    Batch sizes between two ranges, and above the last, have the budget of the range before them.

    Raises:
        OptionError: vLLM cannot use the schedule as it was meant.
    """
    if schedule is None:
        return
    if not isinstance(schedule, list | tuple) or not schedule:
        raise OptionError(f"{NAME} must be {_FORM}, not {shown(schedule)}.")
    for entry in schedule:
        _check_entry(entry, num_slots)
    ranges = sorted(tuple(entry) for entry in schedule)
    if ranges[0][0] != 1:
        raise OptionError(
            f"{NAME} says nothing of batches of fewer than {ranges[0][0]} requests; let its first range start at 1."
        )
    for (first, last, _), (next_first, next_last, _) in pairwise(ranges):
        if next_first <= last:
            raise OptionError(
                f"In {NAME} the ranges {first} to {last} and {next_first} to {next_last} overlap; give every batch "
                "size in one of them."
            )


def _check_entry(entry: Any, num_slots: int) -> None:
    is_triple = isinstance(entry, list | tuple) and len(entry) == 3
    if not is_triple or any(isinstance(number, bool) or not isinstance(number, int) for number in entry):
        raise OptionError(f"{NAME} must be {_FORM}; {shown(entry)} is no such range of integers.")
    first, last, nodes = entry
    if not 1 <= first <= last:
        raise OptionError(f"In {NAME}, {shown(entry)} is no range of batch sizes; they start at 1 and go up.")
    if not 0 <= nodes <= num_slots:
        raise OptionError(
            f"In {NAME}, {shown(entry)} asks for {shown(nodes)} nodes, but there are {num_slots} slots; give 0 to "
            f"{num_slots}, or raise num_speculative_tokens (at most beam_width times beam_length)."
        )
