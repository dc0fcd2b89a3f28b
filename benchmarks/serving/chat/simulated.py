# SPDX-License-Identifier: Apache-2.0
"""The training package's walk along texts that engines have emitted, counted as an engine's steps."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.assets import load_target
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, counted_steps_of_each
from redrafter_vllm.bench.acceptance import emitted_by_step
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface

Text = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt and of its response


class Walker:
    """A target and a drafter in the type that the engines compute in."""

    def __init__(self, target: TargetModel, drafter: DrafterInterface) -> None:
        self.target, self.drafter = target, drafter

    @classmethod
    def load(cls, target: Path, drafter: Path, dtype: str, device: str) -> "Walker":
        kind = getattr(torch, dtype)
        return cls(load_target(target, kind, device), Drafter.from_pretrained(drafter, dtype=kind, device=device))

    def steps(self, texts: Mapping[DraftingConfig, Sequence[Text]], desc: str) -> dict[DraftingConfig, list[list[int]]]:
        """The steps that each tree takes along its texts, as `bench.acceptance.tokens_per_step` takes them.

        A text that several trees have in common passes the target once.
        """
        users: defaultdict[Text, list[tuple[DraftingConfig, int]]] = defaultdict(list)
        for tree, own in texts.items():
            for number, text in enumerate(own):
                users[text].append((tree, number))
        found: dict[DraftingConfig, list[list[int]]] = {tree: [[] for _ in own] for tree, own in texts.items()}
        for text, places in tqdm(users.items(), desc=desc, unit="text"):
            trees = list(dict.fromkeys(tree for tree, _ in places))
            walked = dict(zip(trees, self._walk(text, trees), strict=True))
            for tree, number in places:
                found[tree][number] = walked[tree]
        return found

    def _walk(self, text: Text, trees: Sequence[DraftingConfig]) -> list[list[int]]:
        prompt, response = text
        ids = torch.tensor([*prompt, *response], device=self.target.device)
        shapes = [
            Drafting(tree.beam_width, tree.beam_length, tree.num_speculative_tokens, tree.copies_text) for tree in trees
        ]
        counted = counted_steps_of_each(self.target, self.drafter, ids, len(prompt), shapes)
        return [emitted_by_step(steps.accepted, len(response)) for steps in counted]
