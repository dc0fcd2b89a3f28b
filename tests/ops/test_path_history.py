# SPDX-License-Identifier: Apache-2.0
"""Penalties and bad words on trees: each row must get the same bits as the end of a chain from vLLM's kernels."""

import random
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops.path_history import reference
from redrafter_vllm.ops.path_history.reference import BadWords, Paths, Penalties
from tests.engine.scripted import random_tree
from tests.ops.devices import DEVICE, HAS_GPU, assert_equal, runs_kernels
from tests.tools.cpu_support.interpreted import vllm_gpu

SLOTS, VOCAB, DEPTH, NODES = 5, 70, 5, 9

# The tree of docs/design/architecture.md under root r: a (0), b (1), c (2) and d (3) under a, e (4) under c.
TOKENS = [10, 11, 12, 13, 14]
PARENTS = [-1, -1, 0, 0, 2]


def implementations() -> list[Any]:
    kernel = pytest.param("kernel", marks=[runs_kernels])
    return [kernel] if HAS_GPU else ["reference", kernel]


def vllm_sample(name: str) -> ModuleType:
    """The module of vLLM's kernels for chains."""
    if HAS_GPU:
        return pytest.importorskip(f"vllm.v1.worker.gpu.sample.{name}")
    return vllm_gpu(f"sample.{name}")


def implementation(name: str) -> ModuleType:
    if name == "reference":
        return reference
    from redrafter_vllm.ops.path_history import kernel

    return kernel


def known_tree() -> Paths:
    local = torch.arange(6, device=DEVICE)
    tree = [torch.tensor([nodes], device=DEVICE) for nodes in (TOKENS, PARENTS)]
    return Paths(*tree, torch.zeros_like(local), local, max_depth=4)


def random_paths(rng: random.Random, requests: int, vocab: int) -> Paths:
    tokens, parents = torch.zeros(requests, NODES, dtype=torch.long), torch.full((requests, NODES), -1)
    req, local = [], []
    for index in range(requests):
        own, above, _ = random_tree(rng, [], NODES, DEPTH, vocab)
        tokens[index, : len(own)], parents[index, : len(own)] = torch.tensor(own), torch.tensor(above)
        req += [index] * (1 + len(own))
        local += range(1 + len(own))
    rows = [torch.tensor(part, device=DEVICE) for part in (req, local)]
    return Paths(tokens.to(DEVICE), parents.to(DEVICE), *rows, max_depth=DEPTH)


def own_path(paths: Paths, row: int) -> list[int]:
    """Tokens from below the root to the row's node, by following the parents."""
    req, node = int(paths.req_of_row[row]), int(paths.local_of_row[row]) - 1
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(paths.tokens[req, node]))
        node = int(paths.parents[req, node])
    return path


def as_chain(paths: Paths, row: int) -> tuple[Tensor, Tensor]:
    """Token and local position of each row of a chain whose last row has this row's path."""
    chain = [0, *own_path(paths, row)]
    return torch.tensor(chain, dtype=torch.int32, device=DEVICE), torch.arange(len(chain), device=DEVICE).int()


def test_path_tokens() -> None:
    assert reference.path_tokens(known_tree()).tolist() == [
        [-1, -1, -1, -1],
        [10, -1, -1, -1],
        [11, -1, -1, -1],
        [12, 10, -1, -1],
        [13, 10, -1, -1],
        [14, 12, 10, -1],
    ]


@pytest.mark.parametrize("name", implementations())
def test_penalties_of_a_known_tree(name: str) -> None:
    """Token 10 is in the prompt, 12 once in the output; the path of node e holds 10, 12 and 14."""
    penalties = Penalties(
        *(torch.tensor([x], device=DEVICE) for x in (2.0, 0.5, 0.25)),
        prompt_mask=torch.tensor([[1 << 10]], dtype=torch.int32, device=DEVICE),
        output_counts=torch.zeros(1, 16, dtype=torch.int32, device=DEVICE).index_fill_(
            1, torch.tensor(12, device=DEVICE), 1
        ),
    )
    logits = torch.ones(6, 16, device=DEVICE)
    logits[:, 14] = -1.0
    slot = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    implementation(name).penalise(logits, known_tree(), slot, penalties)
    assert logits[0, 9:].tolist() == [1.0, 0.5, 1.0, -0.25, 1.0, -1.0, 1.0]
    assert logits[4, 9:].tolist() == [1.0, -0.25, 1.0, -0.25, -0.25, -1.0, 1.0]
    assert logits[5, 9:].tolist() == [1.0, -0.25, 1.0, -0.75, 1.0, -2.75, 1.0]


@pytest.mark.parametrize("name", implementations())
def test_bad_words_of_a_known_tree(name: str) -> None:
    """The text ends with 7, 8. Words: 5; 8 10 12 14 3 across text and path; 11 4; 7 8 6; one begun in the prompt."""
    words = [[5], [8, 10, 12, 14, 3], [11, 4], [7, 8, 6], [9, 7, 8, 10, 2]]
    flat = [token for word in words for token in word]
    starts = [sum(map(len, words[:count])) for count in range(len(words) + 1)]
    one = torch.ones(1, dtype=torch.int32, device=DEVICE)
    state = BadWords(
        tokens=torch.tensor([flat], dtype=torch.int32, device=DEVICE),
        offsets=torch.tensor([starts], dtype=torch.int32, device=DEVICE),
        num_words=one * len(words),
        text=torch.tensor([[9, 7, 8, 0]], dtype=torch.int32, device=DEVICE),
        prompt_len=one,
        total_len=one * 3,
    )
    logits = torch.zeros(6, 16, device=DEVICE)
    slot = torch.zeros(6, dtype=torch.int32, device=DEVICE)
    implementation(name).forbid_bad_words(logits, known_tree(), slot, state, max_words=5, max_length=5)
    banned = [[token for token in range(16) if logits[row, token] == -torch.inf] for row in range(6)]
    assert banned == [[5, 6], [5], [4, 5], [5], [5], [3, 5]]
    assert logits[logits != -torch.inf].eq(0).all()


@pytest.mark.parametrize("name", implementations())
@pytest.mark.parametrize("seed", range(2))
def test_penalties_are_those_of_a_chain(name: str, seed: int) -> None:
    theirs = vllm_sample("penalties")
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    paths = random_paths(rng, SLOTS - 1, 9)
    penalties = Penalties(
        repetition=torch.tensor([1.0, 1.3, 1.0, 0.7, 1.1]).to(DEVICE),
        frequency=torch.tensor([0.0, 0.3, 0.0, -0.2, 0.1]).to(DEVICE),
        presence=torch.tensor([0.0, -0.4, 0.9, 0.0, 0.7]).to(DEVICE),
        prompt_mask=torch.randint(-(2**31), 2**31, (SLOTS, 3), generator=generator).int().to(DEVICE),
        output_counts=torch.randint(0, 3, (SLOTS, VOCAB), generator=generator).int().to(DEVICE),
    )
    slots = torch.randperm(SLOTS, generator=generator).int().to(DEVICE)
    slot_of_row = slots[paths.req_of_row]
    logits = torch.randn(slot_of_row.shape[0], VOCAB, generator=generator).to(DEVICE)
    logits[:, 3] = -torch.inf
    result = logits.clone()
    implementation(name).penalise(result, paths, slot_of_row, penalties)
    for row in range(len(logits)):
        tokens, local = as_chain(paths, row)
        wanted = logits[row].repeat(len(tokens), 1)
        theirs.apply_penalties(wanted, slot_of_row[row].repeat(len(tokens)), tokens, local, *penalties)
        assert_equal(result[row], wanted[-1])


@pytest.mark.parametrize("name", implementations())
@pytest.mark.parametrize("seed", range(2))
def test_bad_words_are_those_of_a_chain(name: str, seed: int) -> None:
    theirs = vllm_sample("bad_words")
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    paths = random_paths(rng, 2, 3)
    words = BadWords(
        tokens=torch.zeros(SLOTS, 40, dtype=torch.int32, device=DEVICE),
        offsets=torch.zeros(SLOTS, 6, dtype=torch.int32, device=DEVICE),
        num_words=torch.tensor([5, 0, 3, 5, 4], dtype=torch.int32, device=DEVICE),
        text=torch.randint(0, 3, (SLOTS, 12), generator=generator).int().to(DEVICE),
        prompt_len=torch.tensor([3, 1, 4, 8, 2], dtype=torch.int32, device=DEVICE),
        total_len=torch.tensor([9, 7, 4, 10, 12], dtype=torch.int32, device=DEVICE),
    )
    for slot in range(SLOTS):
        lengths = [rng.randint(1, 4) for _ in range(5)]
        words.offsets[slot, 1:] = torch.tensor(lengths).cumsum(0)
        words.tokens[slot, : sum(lengths)] = torch.tensor([rng.randrange(3) for _ in range(sum(lengths))])
    slot_of_row = torch.randperm(SLOTS, generator=generator).int().to(DEVICE)[paths.req_of_row]
    logits = torch.randn(slot_of_row.shape[0], VOCAB, generator=generator).to(DEVICE)
    result = logits.clone()
    implementation(name).forbid_bad_words(result, paths, slot_of_row, words, max_words=5, max_length=4)
    for row in range(len(logits)):
        tokens, local = as_chain(paths, row)
        wanted = logits[row].repeat(len(tokens), 1)
        tables = (words.tokens, words.offsets, words.num_words, words.text, words.prompt_len, words.total_len)
        theirs.apply_bad_words(wanted, slot_of_row[row].repeat(len(tokens)), *tables, tokens, local, 5)
        assert_equal(result[row], wanted[-1])
    assert (result == -torch.inf).any() and (result[:, :3] != -torch.inf).any()
