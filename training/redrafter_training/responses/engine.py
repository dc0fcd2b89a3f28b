# SPDX-License-Identifier: Apache-2.0
"""The interface of the engines that sample responses: prompts of token ids in, token ids out.

Two backends: `transformers_engine`, for a target that this process has loaded, and `vllm_engine`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One response to sample, of at least one token."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0  # 0 is greedy: always the top-1 token
    seed: int = 0
    longest_repeat: int = 0  # the response ends when it repeats this many tokens in a row; 0: it goes on


@dataclass(frozen=True)
class Completion:
    """The tokens sampled for a request."""

    token_ids: tuple[int, ...]
    ended: bool  # the last one is an end token of the target


class Engine(Protocol):
    """Samples responses of one target, in batches.

    A response ends with an end token of the target, after `max_tokens`, or where it repeats itself. It depends on the
    request's temperature alone: other sampling settings in the target's generation config do not count.
    """

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """The completion of each request, in the order of the requests."""


def continue_prompts(
    engine: Engine, prompts: Sequence[Tensor], max_tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> list[Tensor]:
    """Each prompt [n] with the target's response behind it. [n + at most max_tokens] int64"""
    requests = [Request(tuple(prompt.tolist()), max_tokens, temperature, seed) for prompt in prompts]
    return [
        torch.tensor([*request.prompt_ids, *completion.token_ids])
        for request, completion in zip(requests, engine(requests), strict=True)
    ]
