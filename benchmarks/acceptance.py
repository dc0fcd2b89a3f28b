# SPDX-License-Identifier: Apache-2.0
"""Figures about drafting, from what the engine emitted and counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DraftCounters:
    """vLLM's own counters: verifications, and in how many of them at least i + 1 drafts were accepted.

    For a tree, too, vLLM's i-th per-position counter counts by depth: a step that emits n tokens has accepted n − 1
    drafts, whichever nodes they were, and raises the first n − 1 counters.
    """

    verifications: int
    accepted_at_least: tuple[int, ...]

    def __sub__(self, earlier: "DraftCounters") -> "DraftCounters":
        """What has been counted since `earlier`."""
        pairs = zip(self.accepted_at_least, earlier.accepted_at_least, strict=True)
        return DraftCounters(self.verifications - earlier.verifications, tuple(now - then for now, then in pairs))

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> "DraftCounters":
        """Inverse of `dataclasses.asdict`, also after a trip through JSON."""
        accepted = stored["accepted_at_least"]
        assert isinstance(accepted, (list, tuple)) and isinstance(stored["verifications"], int)
        return cls(stored["verifications"], tuple(accepted))


def tokens_per_step(steps: Sequence[Sequence[int]]) -> float:
    """Emitted tokens per verification step; 1 without drafts.

    `steps` holds for every request how many tokens each of its steps emitted. The first step is the prompt's own
    forward pass, which verifies nothing: neither it nor its token counts.

    Raises:
        ValueError: No request made a second step.
    """
    verifications = sum(len(request) - 1 for request in steps)
    if verifications < 1:
        raise ValueError("no request was decoded beyond its first token")
    return sum(sum(request[1:]) for request in steps) / verifications


def acceptance_by_depth(counters: DraftCounters, beam_length: int) -> list[float]:
    """Fraction of verifications that accepted a draft of depth 1..beam_length."""
    if counters.verifications < 1:
        return [0.0] * beam_length
    return [count / counters.verifications for count in counters.accepted_at_least[:beam_length]]
