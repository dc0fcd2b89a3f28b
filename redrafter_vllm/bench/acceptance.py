# SPDX-License-Identifier: Apache-2.0
"""Tokens per step and acceptance, from emitted tokens and vLLM's counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DraftCounters:
    """vLLM's counters: verifications, and for each i those that accepted at least i + 1 drafts.

    For trees vLLM's i-th per-position counter counts by depth: a step that emits n tokens has accepted n − 1 drafts,
    of any nodes, and increases the first n − 1 counters.
    """

    verifications: int
    accepted_at_least: tuple[int, ...]

    def __sub__(self, earlier: "DraftCounters") -> "DraftCounters":
        """The counts since `earlier`."""
        pairs = zip(self.accepted_at_least, earlier.accepted_at_least, strict=True)
        return DraftCounters(self.verifications - earlier.verifications, tuple(now - then for now, then in pairs))

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> "DraftCounters":
        """The inverse of `dataclasses.asdict`; lists, as JSON has them, are accepted."""
        accepted = stored["accepted_at_least"]
        assert isinstance(accepted, (list, tuple)) and isinstance(stored["verifications"], int)
        return cls(stored["verifications"], tuple(accepted))


def tokens_per_step(steps: Sequence[Sequence[int]]) -> float:
    """Emitted tokens per verification step; 1 without drafts.

    Args:
        steps: For each request the number of tokens that each of its steps emitted. The first step computes the prompt
            and verifies nothing: neither the step nor its token counts.

    Raises:
        ValueError: No request has a second step.
    """
    verifications = sum(len(request) - 1 for request in steps)
    if verifications < 1:
        raise ValueError("no request was decoded beyond its first token")
    return sum(sum(request[1:]) for request in steps) / verifications


def acceptance_by_depth(counters: DraftCounters, beam_length: int) -> list[float]:
    """Fraction of verifications that accepted a draft at each depth, 1 to `beam_length`."""
    if counters.verifications < 1:
        return [0.0] * beam_length
    return [count / counters.verifications for count in counters.accepted_at_least[:beam_length]]


def acceptance_of_steps(steps: Sequence[Sequence[int]], depth: int) -> list[float]:
    """Fraction of verification steps that emitted an accepted draft of each depth, 1 to `depth`, and a token behind it.

    Counted like `tokens_per_step`, and the same for engines that draft at every step and for those that do not. A draft
    that ends its request is not counted, as no token follows it.

    Args:
        steps: As for `tokens_per_step`.
        depth: Greatest depth.
    """
    emitted = [tokens for request in steps for tokens in request[1:]]
    return [sum(tokens > d for tokens in emitted) / max(1, len(emitted)) for d in range(1, depth + 1)]


def emitted_by_step(accepted: Sequence[int], tokens: int) -> list[int]:
    """The steps of one simulated request as an engine emits them, the prompt's first.

    Every verification emits its accepted drafts and one token more, except where the request ends before.

    Args:
        accepted: Accepted drafts by step.
        tokens: Tokens of the response, at least one. The prompt's step emits the first.
    """
    emitted, left = [1], tokens - 1
    for drafts in accepted:
        emitted.append(min(drafts + 1, left))
        left -= emitted[-1]
    if left != 0 or min(emitted) < 1:
        raise ValueError(f"steps that accept {list(accepted)} do not make up {tokens} tokens")
    return emitted
