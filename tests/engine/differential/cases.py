# SPDX-License-Identifier: Apache-2.0
"""Random requests: their parameters, when they arrive and when their client aborts, all from one seed."""

import random
import string
from dataclasses import dataclass
from typing import Any

from tests.engine.differential.target import VOCAB
from tests.engine.sessions import Part

MAX_MODEL_LEN = 144
GRAMMARS: list[dict[str, Any]] = [
    {"regex": r"[a-f]{3}(-[0-9]{2}){2,5}"},
    {"choice": ["yes", "yesterday", "no", "nobody knows"]},
    {"json": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
]
SESSIONS = 0.05  # to a request
# vLLM refuses several answers and stop strings there, and decides by the first part whether there are
# log-probabilities; `min_tokens` would be drawn for other lengths.
_NOT_IN_SESSIONS = (
    *("n", "stop", "include_stop_str_in_output", "structured", "min_tokens", "logprobs", "prompt_logprobs"),
)


@dataclass(frozen=True)
class Case:
    """One request of the stream."""

    name: str
    prompt: tuple[int, ...]
    options: dict[str, Any]  # of SamplingParams, except `structured`, an index into GRAMMARS
    arrival: int  # step
    priority: int
    abort_after: int | None  # steps after its arrival
    abort_in_step: bool  # while the step runs, rather than before it
    more: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = ()  # later parts of a session: prompts and options

    def sampling(self) -> Any:
        """vLLM's parameters, a new object: the engine changes those that it gets."""
        return _sampling(self.options)

    @property
    def parts(self) -> list[Part]:
        """The parts of a session; empty for an ordinary request."""
        said = [(self.prompt, self.options), *self.more] if self.more else []
        return [Part(prompt, _sampling(options)) for prompt, options in said]


def _sampling(given: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options = {**given}
    if "structured" in options:
        options["structured_outputs"] = StructuredOutputsParams(**GRAMMARS[options.pop("structured")])
    return SamplingParams(**options)


def random_cases(count: int, seed: int) -> list[Case]:
    """`count` requests in order of arrival; they come in bursts, and share prefixes."""
    rng = random.Random(seed)
    bases = [_tokens(rng, rng.randint(24, 90)) for _ in range(4)]
    cases: list[Case] = []
    arrival = 0
    talk = random.Random(-seed - 1)  # a separate one: the requests of a seed do not change
    for index in range(count):
        arrival += rng.choice((0, 0, 0, 0, 1, 2, 6))
        if talk.random() < SESSIONS:
            cases.append(_session(talk, f"s{index:05d}", arrival))
        cases.append(
            Case(
                name=f"r{index:05d}",
                prompt=_prompt(rng, bases, [case for case in cases if not case.more]),
                options=_options(rng),
                arrival=arrival,
                priority=rng.randint(-1, 1),
                abort_after=rng.choice((0, 1, 1, 2, 3, 5, 8, 13, 21)) if rng.random() < 0.15 else None,
                abort_in_step=rng.random() < 0.5,
            )
        )
    return cases


def _session(rng: random.Random, name: str, arrival: int) -> Case:
    """Short: while a session waits for its client, vLLM cannot use its blocks for other requests."""
    parts = []
    for _ in range(rng.randint(2, 4)):
        options = {**_options(rng), "max_tokens": rng.choice((1, 1, 2, 5, 9)), "detokenize": False}
        options = {key: value for key, value in options.items() if key not in _NOT_IN_SESSIONS}
        parts.append((_tokens(rng, rng.choice((1, 1, 2, 7))), options))
    leaves = rng.choice((1, 2, 4, 7)) if rng.random() < 0.2 else None
    return Case(name, *parts[0], arrival, rng.randint(-1, 1), leaves, rng.random() < 0.5, tuple(parts[1:]))


def _tokens(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCAB) for _ in range(length))


def _prompt(rng: random.Random, bases: list[tuple[int, ...]], earlier: list[Case]) -> tuple[int, ...]:
    kind = rng.random()
    if kind < 0.1 and earlier:
        return rng.choice(earlier).prompt  # all of it may be cached
    own = _tokens(rng, rng.choice((1, 3, 9, 20)))
    if kind < 0.55:
        base = rng.choice(bases)
        return base[: rng.randint(1, len(base))] + own
    return own if kind < 0.8 else own + _tokens(rng, rng.randint(20, 100))


def _options(rng: random.Random) -> dict[str, Any]:
    """Each parameter with its own probability, so that most requests have several."""
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": rng.choice((1, 2, 6, 17, 33, 48, 64))}

    def maybe(chance: float, name: str, value: Any) -> None:
        if rng.random() < chance:
            options[name] = value

    if rng.random() < 0.6:
        options.update(temperature=rng.choice((0.2, 0.7, 1.0, 1.5)), seed=rng.randrange(1 << 31))
        maybe(0.25, "top_k", rng.choice((1, 2, 7, 40)))
        maybe(0.25, "top_p", rng.choice((0.1, 0.5, 0.9)))
        maybe(0.2, "min_p", rng.choice((0.01, 0.2)))
        maybe(0.1, "n", rng.choice((2, 3)))
    maybe(0.15, "presence_penalty", rng.uniform(-1.5, 1.5))
    maybe(0.15, "frequency_penalty", rng.uniform(-1.0, 1.0))
    maybe(0.15, "repetition_penalty", rng.uniform(0.7, 1.6))
    maybe(0.15, "logprobs", rng.randrange(5))
    maybe(0.05, "prompt_logprobs", rng.randrange(3))
    maybe(0.3, "ignore_eos", True)
    if rng.random() < 0.08:
        options["structured"] = rng.randrange(len(GRAMMARS))
        return options  # the parameters below might leave a grammar no token
    maybe(0.15, "logit_bias", {token: rng.uniform(-6, 6) for token in _tokens(rng, 8) + (2,)})
    maybe(0.1, "allowed_token_ids", sorted({2, *_tokens(rng, 60)}))
    maybe(0.15, "bad_words", [_word(rng) for _ in range(rng.randint(1, 30))])
    maybe(0.25, "stop_token_ids", sorted({*_tokens(rng, rng.randint(1, 30))}))
    maybe(0.2, "min_tokens", rng.randint(1, options["max_tokens"]))
    if rng.random() < 0.25:
        options["stop"] = [_word(rng) for _ in range(rng.randint(1, 20))]
        maybe(0.5, "include_stop_str_in_output", True)
    else:
        maybe(0.2, "detokenize", False)
    return options


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(string.printable[:94]) for _ in range(rng.choice((1, 1, 1, 2))))
