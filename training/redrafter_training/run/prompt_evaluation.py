# SPDX-License-Identifier: Apache-2.0
"""Evaluation on chat prompts: the target answers them turn by turn, and tokens per step are counted by category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.data.conversations import Turn
from redrafter_training.data.rendering import ChatTemplate
from redrafter_training.responses.engine import Completion, Engine, Request
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Acceptance, Drafting, counted_steps, summarise
from redrafter_vllm.bench.tables import DEPTHS
from redrafter_vllm.checkpoint.card import markdown_table
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.prompt_sets import EvaluationPrompt

ALL = "all"


@dataclass(frozen=True)
class AnsweredPrompt:
    """One turn of a prompt with the target's response: token ids [n], of which the first `start` were the prompt."""

    category: str
    turn: int  # 0 is the first
    text: Tensor
    start: int


def answer_prompts(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    prompts: Sequence[EvaluationPrompt],
    *,
    new_tokens: int,
    window: int,
    temperature: float = 0.0,
    seed: int = 0,
    seeds_each: bool = False,
) -> tuple[list[AnsweredPrompt], int]:
    """All turns of all prompts with the target's responses, and the number of turns that do not fit.

    A later turn follows the responses to the earlier ones. A turn that leaves less than `new_tokens` of the `window` is
    left out, with those after it.

    Args:
        seeds_each: give each prompt a seed of its own, which needs an engine that takes them; with one seed for all,
            all responses are sampled with the same noise.
    """
    said: list[list[Turn]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    answered: list[AnsweredPrompt] = []
    left_out = 0
    for turn in range(max(len(prompt.turns) for prompt in prompts)):
        asked: dict[int, tuple[int, ...]] = {}
        for number in [n for n in live if turn < len(prompts[n].turns)]:
            said[number].append(Turn("user", prompts[number].turns[turn]))
            text = template.prompt(said[number])
            ids = tokenizer(text, add_special_tokens=template.adds_special_tokens, verbose=False)["input_ids"]
            if len(ids) + new_tokens <= window:
                asked[number] = tuple(ids)
            else:
                left_out += len(prompts[number].turns) - turn
        # Prompts of a similar length share a batch of transformers.
        live = sorted(asked, key=lambda number: len(asked[number]))
        seeds = [seed + number if seeds_each else seed for number in live]
        completions = engine(
            [Request(asked[number], new_tokens, temperature, own) for number, own in zip(live, seeds, strict=True)]
        )
        for number, completion in zip(live, completions, strict=True):
            said[number].append(Turn("assistant", _text(tokenizer, completion)))
            ids = torch.tensor([*asked[number], *completion.token_ids])
            answered.append(AnsweredPrompt(prompts[number].category, turn, ids, len(asked[number])))
    return answered, left_out


def _text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    return str(tokenizer.decode(completion.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def acceptance_by_category(
    target: TargetModel,
    drafter: DrafterInterface,
    answered: Sequence[AnsweredPrompt],
    draftings: Sequence[Drafting],
    *,
    quiet: bool = True,
) -> list[dict[str, Acceptance]]:
    """For each shape, acceptance over all responses (`all`), by turn (`turn 1`, `turn 2`) and by category.

    The target reads each response once, whatever the number of shapes. `quiet` shows no progress bar.

    Raises:
        ValueError: no response has two tokens.
    """
    texts = [(response.text, response.start) for response in answered]
    counted = counted_steps(target, drafter, texts, draftings, quiet=quiet)
    # Whether a response has steps does not depend on the shape.
    has_steps = [bool(steps.accepted) for steps in counted[0]]
    groups = {
        group: members
        for group, members in _groups(answered).items()
        if group == ALL or any(has_steps[member] for member in members)
    }
    return [
        {group: summarise([steps[member] for member in members], drafting) for group, members in groups.items()}
        for steps, drafting in zip(counted, draftings, strict=True)
    ]


def _groups(answered: Sequence[AnsweredPrompt]) -> dict[str, list[int]]:
    """The places in `answered` of all responses, of each turn and of each category, in the order of a report."""
    places = range(len(answered))
    turns = sorted({response.turn for response in answered})
    categories = sorted({response.category for response in answered} - {""})
    groups = {ALL: list(places)}
    groups |= {f"turn {turn + 1}": [at for at in places if answered[at].turn == turn] for turn in turns}
    return groups | {name: [at for at in places if answered[at].category == name] for name in categories}


def results_text(measured: Sequence[tuple[Drafting, Mapping[str, Acceptance]]]) -> str:
    """Tables for a drafter's card: tokens per step by group, and over all responses what was accepted by depth."""
    shapes = [f"{s.beam_width} x {s.beam_length} in {s.max_nodes}" for s, _ in measured]
    depths = range(1, 1 + min(DEPTHS, max(shape.max_depth for shape, _ in measured)))
    groups = [
        (group, *(f"{figures[group].tokens_per_step:.2f}" for _, figures in measured)) for group in measured[0][1]
    ]
    by_depth = [
        (shape, *(f"{rates[depth - 1]:.0%}" if depth <= len(rates) else "–" for depth in depths))
        for shape, rates in zip(shapes, (figures[ALL].acceptance_by_depth for _, figures in measured), strict=True)
    ]
    return "\n\n".join(
        (
            "Tokens per step of the target, simulated, by beams x length in nodes (1 is no gain):",
            markdown_table(("prompts", *shapes), groups),
            "Share of the steps in which a draft of that depth was accepted, all prompts:",
            markdown_table(("beams x length in nodes", *(f"depth {depth}" for depth in depths)), by_depth),
        )
    )
