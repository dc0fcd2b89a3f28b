# SPDX-License-Identifier: Apache-2.0
"""Responses that the target writes itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.responses.repetition import repetition_start
from redrafter_training.target.model import TargetModel


@torch.inference_mode()
def continue_prompts(
    target: TargetModel, prompts: Sequence[Tensor], max_new_tokens: int, *, temperature: float = 0.0
) -> list[Tensor]:
    """Each prompt [n] with the target's continuation: at most `max_new_tokens` more, up to and including EOS.

    Temperature 0 is greedy: always the likeliest token, whatever else the target's generation config asks for. Above
    it, tokens are drawn from torch's global generator. All prompts run as one batch.
    """
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    sampling = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature, "top_k": 0}
    eos = target.model.generation_config.eos_token_id or None  # an empty list is none, too
    with _plain_generation(target.model, GenerationConfig(eos_token_id=eos)):
        output = target.model.generate(
            input_ids=ids.to(target.device),
            attention_mask=mask.to(target.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=eos[0] if isinstance(eos, list) else eos,
            **sampling,
        ).cpu()
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    return [_until_end(row[longest - len(p) :], len(p), ends) for row, p in zip(output, prompts, strict=True)]


@contextmanager
def _plain_generation(model: PreTrainedModel, plain: GenerationConfig) -> Iterator[None]:
    """Sets the model's generation config aside for the while.

    `generate` fills whatever it is not told from there, and much of that (repetition penalties, suppressed or forced
    tokens, beams, least lengths) has no value that a caller could give to turn it off.
    """
    own, model.generation_config = model.generation_config, plain
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(sequence: Tensor, prompt_length: int, ends: set[int]) -> Tensor:
    for place in range(prompt_length, len(sequence)):
        if int(sequence[place]) in ends:
            return sequence[: place + 1]
    return sequence


def write_texts(
    target: TargetModel,
    asked: Sequence[tuple[Tensor, float]],
    length: int,
    config: ResponseConfig,
    seed: int,
    *,
    quiet: bool = False,
) -> list[tuple[Tensor, int]]:
    """The target's continuations of prompts, each at a temperature; texts of at most `length` tokens, each once.

    Prompts of one temperature and similar length share a batch. A text ends before it goes round in circles.

    Returns:
        The texts, and how many tokens of each are the prompt.
    """
    torch.manual_seed(seed)
    texts: dict[tuple[int, ...], tuple[Tensor, int]] = {}
    in_order = sorted(asked, key=lambda pair: (pair[1], len(pair[0])))
    with tqdm(total=len(asked), desc="responses", unit="text", disable=quiet) as bar:
        for temperature, group in groupby(in_order, key=itemgetter(1)):
            prompts = [prompt for prompt, _ in group]
            for first in range(0, len(prompts), config.batch_size):
                batch = prompts[first : first + config.batch_size]
                room = length - max(map(len, batch))
                continued = continue_prompts(target, batch, room, temperature=temperature)
                for text, prompt in zip(continued, batch, strict=True):
                    kept = text[: repetition_start(text.tolist(), len(prompt), config.longest_repeat)]
                    texts.setdefault(tuple(kept.tolist()), (kept, len(prompt)))
                bar.update(len(batch))
    return list(texts.values())
