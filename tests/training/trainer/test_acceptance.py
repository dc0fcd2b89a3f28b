# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.responses.engine import continue_prompts
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, accepted_depths, count_steps, measure
from redrafter_training.trainer.loop import build_drafter, distill
from redrafter_vllm.drafting.beam_search import beam_search
from redrafter_vllm.drafting.tree import DraftTree
from tests.oracles import kept_beams


def test_walk_follows_only_children_of_accepted_nodes() -> None:
    # root -> 7 -> 8 -> 9, root -> 5 -> 8; the last slot is padding.
    row = DraftTree(
        tokens=torch.tensor([[7, 5, 8, 8, 9, 0]]).expand(6, -1),
        parents=torch.tensor([[-1, -1, 0, 1, 2, -1]]).expand(6, -1),
        depths=torch.tensor([[1, 1, 2, 2, 3, 0]]).expand(6, -1),
        log_probs=torch.zeros(6, 6),
        beams=torch.zeros(6, 6, dtype=torch.long),
        num_nodes=torch.full((6,), 5),
    )
    future = torch.tensor([[7, 8, 9], [7, 8, 4], [5, 8, 9], [6, 8, 9], [7, 9, 9], [0, 0, 0]])
    assert accepted_depths(row, future).tolist() == [3, 2, 2, 0, 1, 0]


def test_counting_steps_by_hand() -> None:
    # Roots 0..7. A step at 0 accepts 2 and makes 3 the root; 3 accepts none; 4 accepts 3, which is the end.
    assert count_steps([2, 9, 9, 0, 3, 9, 9, 9]) == [2, 0, 3]
    assert count_steps([0, 0, 0]) == [0, 0]
    assert count_steps([0]) == []


def test_equals_decoding_step_by_step(tiny_target: TargetModel) -> None:
    config = DistillConfig(
        Budget(40), beam_length=3, window=24, chunk=24, responses=ResponseConfig(min_prompt=2, max_prompt=8)
    )
    tiny_target.model.generation_config.eos_token_id = None  # or the texts could be short
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (4, 4)]
    texts = [
        (t, len(p))
        for t, p in zip(continue_prompts(TransformersEngine(tiny_target), prompts, 20), prompts, strict=True)
    ]
    drafter = build_drafter(tiny_target, config)
    seen = Windows.full(texts[0][0][None])
    distill(drafter, tiny_target, iter([seen] * 40), config, quiet=True)

    emitted = steps = 0
    accepted_at = [0, 0, 0]
    for text, start in texts:
        place = start  # of the root
        while place < len(text) - 1:
            hidden = tiny_target.outputs(text[None, :place]).hidden[0, -1:]
            beams = beam_search(
                drafter, tiny_target.embedding, hidden, text[place : place + 1], beam_width=3, beam_length=3
            )
            truth = text[place + 1 :].tolist()
            accepted = 0
            for depth, step in enumerate(kept_beams(beams, 0), 1):
                if any(list(path) == truth[:depth] for path, _ in step):
                    accepted = depth
            for depth in range(accepted):
                accepted_at[depth] += 1
            steps += 1
            place += accepted + 1
        emitted += len(text) - start - 1
    figures = measure(tiny_target, drafter, texts, Drafting(3, 3, 9))
    assert figures.steps == steps < emitted
    assert figures.tokens == emitted
    assert figures.tokens_per_step == pytest.approx(emitted / steps)
    assert figures.acceptance_by_depth == pytest.approx([a / steps for a in accepted_at])


def test_nothing_to_measure(tiny_target: TargetModel) -> None:
    config = DistillConfig(Budget(1))
    with pytest.raises(ValueError, match="no text"):
        measure(tiny_target, build_drafter(tiny_target, config), [(torch.tensor([3, 4]), 1)], Drafting())
    with pytest.raises(ValueError, match="at least 1"):
        Drafting(beam_width=0)
