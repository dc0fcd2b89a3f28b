# SPDX-License-Identifier: Apache-2.0
"""How two engines' answers differ, described so that rounding can be distinguished from a bug."""

import math
from typing import Any

from tests.engine.differential.cases import Case
from tests.engine.differential.stream import Answer
from tests.engine.generation import generate, params

TOLERANCE = 1e-4  # of log-probabilities


def difference(plain: Any, case: Case, expected: Any, answer: Answer) -> str | None:
    """The first difference of `answer`, or None. `expected` is the output of `plain` for the whole request."""
    if not answer.aborted and not answer.finished:
        return "it never ended"
    if answer.session is not None:
        return session_difference(expected, answer.session.answers, answer.aborted)
    for wanted in expected.outputs:
        own = answer.completions.get(wanted.index)
        if own is None:
            if not answer.aborted:
                return f"completion {wanted.index} is missing"
            continue
        theirs, ours = list(wanted.token_ids), list(own.token_ids)
        first = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        if first is not None:
            pair = theirs[first], ours[first]
            scores = log_probs(plain, [*case.prompt, *theirs[:first]], pair)
            return (
                f"token {first} of completion {wanted.index} is {pair[1]}, not {pair[0]}; plain vLLM's "
                f"log-probabilities there, before processing: {scores[1]:.7f} and {scores[0]:.7f}"
            )
        if answer.aborted:
            if len(ours) > len(theirs):
                return f"completion {wanted.index} goes on after its end"
            continue
        for name in ("token_ids", "text", "finish_reason", "stop_reason"):
            if getattr(own, name) != getattr(wanted, name):
                return f"{name} of completion {wanted.index}: {getattr(own, name)!r}, not {getattr(wanted, name)!r}"
        if problem := logprobs_difference(wanted.logprobs, own.logprobs):
            return f"log-probabilities of completion {wanted.index}: {problem}"
    if not answer.aborted and (problem := logprobs_difference(expected.prompt_logprobs, answer.prompt_logprobs)):
        return f"log-probabilities of the prompt: {problem}"
    return None


def session_difference(expected: list[list[int]], answers: list[list[int]], aborted: bool) -> str | None:
    """The first difference of the answers to a session's parts, of which the last is not complete; or None."""
    wanted = [part[: len(own)] for part, own in zip([*expected, []], answers, strict=False)] if aborted else expected
    own = answers if aborted else answers[:-1]
    return None if own == wanted else f"its parts are answered by {own}, not {wanted}"


def logprobs_difference(wanted: Any, own: Any) -> str | None:
    """Log-probabilities as vLLM's outputs hold them: per position a map from tokens to values and ranks.

    Tokens that a grammar forbids (minus infinity) are equal; it does not matter which of them are listed.
    """
    if len(wanted or ()) != len(own or ()):
        return f"{len(own or ())} positions, not {len(wanted or ())}"
    for position, pair in enumerate(zip(wanted or (), own or (), strict=True)):
        theirs, ours = ({t: e for t, e in (listed or {}).items() if e.logprob > -math.inf} for listed in pair)
        if theirs.keys() != ours.keys():
            return f"at {position} of tokens {sorted(ours)}, not {sorted(theirs)}"
        for token, entry in theirs.items():
            if abs(ours[token].logprob - entry.logprob) > TOLERANCE or ours[token].rank != entry.rank:
                return f"at {position} token {token} has {ours[token]}, not {entry}"
    return None


def log_probs(plain: Any, context: list[int], tokens: tuple[int, int]) -> tuple[float, float]:
    """Plain vLLM's log-probabilities of two tokens after `context`."""
    sampling = params(temperature=0.0, max_tokens=1, logprob_token_ids=list(tokens))
    (position,) = generate(plain, [context], sampling)[0].outputs[0].logprobs
    return position[tokens[0]].logprob, position[tokens[1]].logprob
