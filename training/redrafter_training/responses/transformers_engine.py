# SPDX-License-Identifier: Apache-2.0
"""Responses sampled with transformers, by a target that this process has loaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.repetition import repetition_start
from redrafter_training.target.model import TargetModel


class TransformersEngine:
    """An `Engine` (see there) of a loaded target, whose end tokens are those of its generation config.

    Neighbouring requests of one temperature share a batch, in which no response gets longer than the smallest
    `max_tokens`: sort requests by temperature and length. All rows of a batch draw from torch's global generator,
    which is seeded once per call, so all requests of a call have the same seed.

    Args:
        batch_size: maximum number of requests in a batch; None for no maximum.
        quiet: no progress bar.
    """

    seeds_each = False  # see `VllmEngine`

    def __init__(self, target: TargetModel, batch_size: int | None = None, *, quiet: bool = True) -> None:
        self._target = target
        self._batch_size = batch_size
        self._quiet = quiet

    @property
    def dtype(self) -> str:
        return str(self._target.model.dtype).removeprefix("torch.")

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """
        Raises:
            ValueError: requests have different seeds.
        """
        if not requests:
            return []
        if len({request.seed for request in requests}) > 1:
            raise ValueError("transformers has no seed for each request: the requests of a call need the same one")
        torch.manual_seed(requests[0].seed)
        completions: list[Completion] = []
        with tqdm(total=len(requests), desc="responses", unit="text", disable=self._quiet) as bar:
            for batch in self._batches(requests):
                completions += self._sample(batch)
                bar.update(len(batch))
        return completions

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        for _, group in groupby(requests, key=lambda request: request.temperature):
            same = list(group)
            size = self._batch_size or len(same)
            yield from (same[first : first + size] for first in range(0, len(same), size))

    @torch.inference_mode()
    def _sample(self, batch: Sequence[Request]) -> list[Completion]:
        target = self._target
        longest = max(len(request.prompt_ids) for request in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, longest - len(request.prompt_ids) :] = 1
        temperature = batch[0].temperature
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        eos = target.model.generation_config.eos_token_id or None  # an empty list names none either
        with _plain_generation(target.model, GenerationConfig(eos_token_id=eos)):
            output = target.model.generate(
                input_ids=ids.to(target.device),
                attention_mask=mask.to(target.device),
                max_new_tokens=min(request.max_tokens for request in batch),
                pad_token_id=eos[0] if isinstance(eos, list) else eos,
                **sampling,
            ).cpu()
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        made = output[:, longest:].tolist()
        return [_completion(row, ends, request.longest_repeat) for row, request in zip(made, batch, strict=True)]


@contextmanager
def _plain_generation(model: PreTrainedModel, plain: GenerationConfig) -> Iterator[None]:
    """Replaces the model's generation config for a while.

    `generate` takes from there whatever its caller leaves out, and much of that (repetition penalties, suppressed or
    forced tokens, beams, minimum lengths) has no value with which a caller could turn it off.
    """
    own, model.generation_config = model.generation_config, plain
    try:
        yield
    finally:
        model.generation_config = own


def _completion(sampled: Sequence[int], ends: set[int], longest_repeat: int) -> Completion:
    """The tokens up to the first end token, or up to where they repeat themselves."""
    length = next((place for place, token in enumerate(sampled, 1) if token in ends), len(sampled))
    length = min(length, repetition_start(sampled[:length], longest_repeat))
    return Completion(tuple(sampled[:length]), length > 0 and sampled[length - 1] in ends)
