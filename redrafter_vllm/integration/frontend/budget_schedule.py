# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedule of node budgets by batch size, checked before an engine is built on it.

vLLM expands it when the engine has loaded, cuts what is more than the slots, and takes anything that `int` takes.
"""

from itertools import pairwise
from typing import Any

from redrafter_vllm.config import OptionError
from redrafter_vllm.utils.messages import shown

NAME = "num_speculative_tokens_per_batch_size"
_FORM = "a list of [first batch, last batch, nodes], such as [[1, 4, 16], [5, 16, 7], [17, 1024, 0]]"


def check_schedule(schedule: Any, num_slots: int) -> None:
    """Raises OptionError unless vLLM can follow `schedule`, with at most `num_slots` nodes; None is no schedule.

    Batches between two ranges, and behind the last, draft like the range before them.
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
    whole = isinstance(entry, list | tuple) and len(entry) == 3
    if not whole or any(isinstance(number, bool) or not isinstance(number, int) for number in entry):
        raise OptionError(f"{NAME} must be {_FORM}; {shown(entry)} is no such range of integers.")
    first, last, nodes = entry
    if not 1 <= first <= last:
        raise OptionError(f"In {NAME}, {shown(entry)} is no range of batch sizes; they start at 1 and go up.")
    if not 0 <= nodes <= num_slots:
        raise OptionError(
            f"In {NAME}, {shown(entry)} asks for {shown(nodes)} nodes, but there are {num_slots} slots; give 0 to "
            f"{num_slots}, or raise num_speculative_tokens (at most beam_width times beam_length)."
        )
