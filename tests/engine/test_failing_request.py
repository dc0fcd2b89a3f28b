# SPDX-License-Identifier: Apache-2.0
"""A request whose drafts fail beside one whose drafts are accepted: its nodes leave the budget, and come back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.integration.worker import speculator as speculator_module
from tests.engine.budgets import chosen_budgets
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, tokens
from tests.engine.scripted import texts_of_rounds, truths_of
from tests.models import VOCAB

pytestmark = cpu_only

SURE = 0.6  # the drafter's probability of each of its tokens, right or wrong
GOOD = 2  # tokens of each chain that are right
FAILING = 80  # tokens of the failing request before its text becomes predictable
# A request whose nodes all fail is expected to have about one in eight accepted, as its past is forgotten step by step.
# Beside another one that emits three tokens in a step, a first node has to be accepted one time in five to pay.
COSTS = MeasuredCosts([(1, 0.02), (33, 0.148)], 0.0, [(1, 0.001), (2, 0.0015)])


@contextmanager
def equally_sure_chains(llm: Any, truths: dict[tuple[int, ...], list[int]], failing: list[int]) -> Iterator[list[int]]:
    """Chains of which the first tokens are right, but none of the request with this prompt, at first.

    The drafter does not know it: all its tokens are equally sure. Yields the lengths of the failing request's text, by
    round.
    """
    lengths: list[int] = []

    def draw(
        drafter: Any,
        embedding: Any,
        context: Any,
        roots: Any,
        beam_limit: Any,
        config: Any,
        rank: Any,
        beam_steps: int | None = None,
        texts: Any = None,
    ) -> DraftTree:
        length, chains = beam_steps or config.beam_length, []
        for _, text in known():
            (truth,) = [truth for prompt, truth in truths.items() if tuple(text[: len(prompt)]) == prompt]
            right = GOOD
            if text[: len(failing)] == failing:
                lengths.append(len(text) - len(failing))
                right = GOOD if lengths[-1] >= FAILING else 0
            ahead = (truth[len(text) :] + [0] * length)[:length]
            chains.append([token if place < right else (token + 1) % VOCAB for place, token in enumerate(ahead)])
        chain = torch.tensor(chains)[:, :, None]
        log_probs = (np.log(SURE) * torch.arange(1, length + 1))[None, :, None].expand(chain.shape).float()
        beams = Beams(chain, torch.zeros_like(chain), log_probs.contiguous())
        return DraftTree.from_beams(beams, config.num_speculative_tokens, None, rank(beams))

    with texts_of_rounds(llm) as known, patch.object(speculator_module, "propose_trees", draw):
        yield lengths


def test_its_nodes_leave_the_budget_and_come_back(make_engine: MakeEngine, random_target: Path) -> None:
    prompts = random_prompts(2, VOCAB, seed=11, longest=60)
    sampling = [params(temperature=0.0, ignore_eos=True, max_tokens=length) for length in (400, 160)]
    expected = generate(make_engine(random_target), prompts, sampling)
    llm = make_engine(random_target, {**TREE, "adaptive": True})
    with (
        equally_sure_chains(llm, truths_of(prompts, expected), prompts[1]) as lengths,
        chosen_budgets(llm, COSTS, spread=1.05) as chosen,
    ):
        outputs = generate(llm, prompts, sampling)
    assert tokens(outputs) == tokens(expected)

    names = sorted({name for step in chosen for name in step}, key=int)
    nodes = np.array([[step[name] for name in names] for step in chosen if len(step) == 2])
    returned = sum(length < FAILING for length in lengths)
    while_failing, later = nodes[40:returned], nodes[returned + 15 :]
    print("nodes while it fails, and later:", while_failing.mean(0), later.mean(0))
    assert len(while_failing) > 30 and len(later) > 8
    # What is left of it is a node now and then, which shows when its text has become predictable.
    assert while_failing[:, 0].mean() > 1 > 0.6 > while_failing[:, 1].mean()
    assert later.min(1).mean() > 0.75 * GOOD
