# SPDX-License-Identifier: Apache-2.0
"""New weights during a stream, at random steps: valid and invalid drafters, and the target's weights again."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.integration.worker import speculator as speculator_module
from redrafter_vllm.model.drafter import Drafter
from tests.engine.generation import runner
from tests.engine.new_weights import save_drafter_like


class Swaps:
    """Called after each step; `drafters` have the served shape, `wrong` are refused."""

    def __init__(self, llm: Any, target: Path, scratch: Path, renew: Callable[[], None], seed: int) -> None:
        """`renew` is called after the target has got its weights."""
        self.llm, self.target, self.renew = llm, target, renew
        self.rng = random.Random(seed)
        served = target / "redrafter"
        self.drafters = [served, *(save_drafter_like(served, scratch / str(i), seed=i) for i in (1, 2))]
        self.wrong = [scratch / "nothing", save_drafter_like(served, scratch / "deeper", num_draft_layers=2)]
        self.current = Drafter.from_pretrained(served)
        self.done: Counter[str] = Counter()

    def __call__(self, step: int) -> None:
        kind = self.rng.choices(("", "drafter", "wrong", "target"), (100, 6, 3, 2))[0]
        self.done[kind] += 1
        if kind == "drafter":
            path = self.rng.choice(self.drafters)
            self.llm.collective_rpc("reload_drafter", args=(str(path),))
            self.current = Drafter.from_pretrained(path)
        elif kind == "wrong":
            try:
                self.llm.collective_rpc("reload_drafter", args=(str(self.rng.choice(self.wrong)),))
            except (CheckpointError, ValueError):
                return
            raise AssertionError("a drafter that does not fit was taken")
        elif kind == "target":
            self.llm.collective_rpc("reload_weights")
            self.renew()


@contextmanager
def own_trees_in_between(swaps: Swaps) -> Iterator[None]:
    """Every fourth of the scripted rounds is drawn by the drafter, which must be the one loaded last."""
    other, rng = speculator_module.propose_trees, random.Random(0)
    assert other is not propose_trees

    def draw(drafter: Drafter, embedding: torch.Tensor, context: torch.Tensor, *args: Any) -> DraftTree:
        if rng.random() < 0.75:
            return other(drafter, embedding, context, *args)
        state = context.flip(0).unsqueeze(1)
        torch.testing.assert_close(drafter(context, state), swaps.current(context, state), atol=1e-3, rtol=1e-4)
        inputs = swaps.current.token_inputs(runner(swaps.llm).get_model().model.embed_tokens.weight)
        if runner(swaps.llm).speculator.drafting.project_embedding:
            inputs = inputs @ swaps.current.rnn_w.weight.T
        torch.testing.assert_close(embedding, inputs[: len(embedding)], atol=1e-4, rtol=1e-4)
        return propose_trees(drafter, embedding, context, *args)

    with patch.object(speculator_module, "propose_trees", draw):
        yield
