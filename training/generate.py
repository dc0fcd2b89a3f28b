# SPDX-License-Identifier: Apache-2.0
"""Responses that the target writes itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from training.config import ResponseConfig
from training.data import cut_windows
from training.frozen_target import FrozenTarget
from training.loops import loop_start


@torch.inference_mode()
def continue_prompts(
    target: FrozenTarget, prompts: Sequence[Tensor], max_new_tokens: int, *, temperature: float = 0.0
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


def ends_of(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer in serving: those of the generation config, and the tokenizer's EOS."""
    named = config.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    return sorted(ends | ({tokenizer.eos_token_id} - {None}))


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


def make_responses(
    target: FrozenTarget,
    files: list[Tensor],
    length: int,
    bos: int | None,
    config: ResponseConfig,
    seed: int,
    *,
    quiet: bool = False,
) -> list[Tensor]:
    """`config.count` texts of at most `length` tokens: a prompt from `files`, then what the target makes of it.

    Prompt lengths and the configured temperatures alternate from batch to batch. A text ends before it goes round in
    circles.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    texts = torch.cat([cut_windows(files, config.max_prompt, bos, generator)])
    made: list[Tensor] = []
    with tqdm(total=config.count, desc="responses", unit="text", disable=quiet) as bar:
        for number, first in enumerate(range(0, config.count, config.batch_size)):
            last = min(first + config.batch_size, config.count)
            size = int(torch.randint(config.min_prompt, config.max_prompt + 1, (), generator=generator))
            rows = torch.randint(len(texts), (last - first,), generator=generator)
            temperature = config.temperatures[number % len(config.temperatures)]
            prompts = list(texts[rows, :size])
            continued = continue_prompts(target, prompts, length - size, temperature=temperature)
            made += [text[: loop_start(text.tolist(), size, config.longest_repeat)] for text in continued]
            bar.update(last - first)
    return made
