# SPDX-License-Identifier: Apache-2.0
"""Random trees that hide the true continuation: every shape of acceptance, without a trained drafter."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.integration.worker import speculator as speculator_module
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.engine.generation import generate, params, random_prompts, runner, tokens
from tests.models import VOCAB


def random_chain(rng: random.Random, truth: list[int], length: int, vocab_size: int) -> list[int]:
    """`length` tokens, of which the first few are those of `truth`."""
    right = truth[: rng.randint(0, length)]
    return right + [rng.randrange(vocab_size) for _ in range(length - len(right))]


def random_tree(
    rng: random.Random, truth: list[int], max_nodes: int, max_depth: int, vocab_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and depths of a random tree in which a prefix of `truth` is a path of scattered nodes."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    taken: set[tuple[int, int]] = set()
    on_path, end = -1, rng.randint(0, min(len(truth), max_depth))
    walked = 0
    for _ in range(rng.randint(1, max_nodes)):
        if walked < end and rng.random() < 0.5:
            parent, token = on_path, truth[walked]
        else:
            parent, token = rng.randrange(-1, len(tokens)), rng.randrange(vocab_size)
        depth = 1 + (depths[parent] if parent >= 0 else 0)
        if depth > max_depth or (parent, token) in taken:
            continue
        taken.add((parent, token))
        if walked < end and parent == on_path and token == truth[walked]:
            on_path, walked = len(tokens), walked + 1
        tokens.append(token)
        parents.append(parent)
        depths.append(depth)
    return tokens, parents, depths


@contextmanager
def scripted_trees(llm: Any, truths: Mapping[tuple[int, ...], list[int]], *, seed: int = 0) -> Iterator[list[int]]:
    """Make `llm` draft random trees around `truths`, the full token sequence that each prompt leads to.

    A request that may only have a chain gets a chain.

    Yields a list of the numbers of nodes of the trees drawn.
    """
    states = runner(llm).req_states

    def continuation(row: int, known: list[int]) -> list[int]:
        return truths[tuple(known[: states.prompt_len.np[row]])][len(known) :]

    with trees_around(llm, continuation, seed=seed) as drawn:
        yield drawn


@contextmanager
def trees_around(
    llm: Any, continuation: Callable[[int, list[int]], list[int]], *, seed: int = 0
) -> Iterator[list[int]]:
    """Like `scripted_trees`; `continuation(row, known)` returns the tokens that follow those known, by row."""
    rng = random.Random(seed)
    drawn: list[int] = []

    def draw(
        drafter: Any,
        embedding: torch.Tensor,
        context: Any,
        roots: Any,
        beam_limit: Any,
        config: Any,
        rank: Any = None,
        beam_steps: int | None = None,
        texts: Any = None,
    ) -> DraftTree:
        length = beam_steps or config.beam_length
        known_tokens = known()
        shape = (len(known_tokens), config.num_speculative_tokens)
        tree = DraftTree(
            tokens=torch.zeros(shape, dtype=torch.long),
            parents=torch.full(shape, -1),
            depths=torch.zeros(shape, dtype=torch.long),
            log_probs=torch.full(shape, -torch.inf),
            beams=torch.zeros(shape, dtype=torch.long),
            num_nodes=torch.zeros(len(known_tokens), dtype=torch.long),
        )
        for index, (row, text) in enumerate(known_tokens):
            truth = continuation(row, text)
            if beam_limit[index] == 1:
                own = random_chain(rng, truth, length, embedding.shape[0])
                nodes = own, list(range(-1, length - 1)), list(range(1, length + 1))
            else:
                nodes = random_tree(rng, truth, shape[1], length, embedding.shape[0])
            count = len(nodes[0])
            tree.tokens[index, :count], tree.parents[index, :count], tree.depths[index, :count] = map(
                torch.tensor, nodes
            )
            tree.num_nodes[index] = count
            drawn.append(count)
        return tree

    with texts_of_rounds(llm) as known, patch.object(speculator_module, "propose_trees", draw):
        yield drawn


@contextmanager
def texts_of_rounds(llm: Any) -> Iterator[Callable[[], list[tuple[int, list[int]]]]]:
    """Yields a function that returns, within a round, the row of each request and all its tokens so far."""
    states = runner(llm).req_states
    rows: list[int] = []
    propose = RedrafterSpeculator.propose

    def remember(self: RedrafterSpeculator, input_batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows[:] = input_batch.idx_mapping.tolist()
        return propose(self, input_batch, *args, **kwargs)

    with patch.object(RedrafterSpeculator, "propose", remember):
        yield lambda: [(row, states.all_token_ids.gpu[row, : states.total_len.gpu[row]].tolist()) for row in rows]


def truths_of(prompts: Sequence[list[int]], outputs: Sequence[Any]) -> dict[tuple[int, ...], list[int]]:
    """The full token sequence that each prompt leads to, from its output."""
    return {tuple(prompt): [*prompt, *out.outputs[0].token_ids] for prompt, out in zip(prompts, outputs, strict=True)}


def run_both(
    plain: Any, other: Any, prompts: Sequence[list[int]], sampling: Any, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """Outputs of plain vLLM, and of `other` with random trees around them."""
    expected = generate(plain, prompts, sampling)
    with scripted_trees(other, truths_of(prompts, expected), seed=seed):
        return expected, generate(other, prompts, sampling)


def assert_identical(plain: Any, other: Any, *, count: int = 6, max_tokens: int = 32) -> None:
    """Greedy and seeded requests of mixed length in one batch: the same tokens from both engines."""
    prompts = random_prompts(count, VOCAB, longest=150)
    sampling = [
        params(temperature=0.8 * (index % 2), seed=index, ignore_eos=True, max_tokens=max_tokens)
        for index in range(count)
    ]
    expected, outputs = run_both(plain, other, prompts, sampling)
    assert tokens(outputs) == tokens(expected)


def same_clear_choices(expected: Sequence[Any], outputs: Sequence[Any], gap: float = 0.1) -> int:
    """Check greedy outputs in a dtype that rounds a row differently in a batch of another size.

    The first difference of a request must be where its two best logprobs are within `gap`. Returns the number of equal
    tokens.
    """
    equal = 0
    for output, wanted in zip(outputs, expected, strict=True):
        own, theirs = output.outputs[0], wanted.outputs[0]
        for position, (token, reference) in enumerate(zip(own.token_ids, theirs.token_ids, strict=True)):
            if token != reference:
                scores = sorted((entry.logprob for entry in theirs.logprobs[position].values()), reverse=True)
                assert scores[0] - scores[1] < gap, "a clear choice differs"
                break
            equal += 1
    return equal
