# SPDX-License-Identifier: Apache-2.0
"""A target with cached hidden states: filling the cache, and training from it without the target's body."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from redrafter_training.config.job import Job, absolute_place
from redrafter_training.config.recipe import DistillConfig, MixedPrecision
from redrafter_training.data.chat_templates import template_fingerprint
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import TrainContext
from redrafter_training.hidden_states.store import (
    DTYPE,
    SHARD_BYTES,
    HiddenCache,
    HiddenCacheError,
    StoredStates,
)
from redrafter_training.hidden_states.text_index import TextIndex, texts_of
from redrafter_training.target.lm_head import TargetHead
from redrafter_training.target.loading import target_dtype
from redrafter_training.target.model import DeferredTarget, Target, TargetModel, TargetOutputs
from redrafter_training.target.precision import mixed_precision, resolved
from redrafter_training.target.properties import load_config
from redrafter_training.utils.folder_lock import locked
from redrafter_training.utils.memory import readable
from redrafter_vllm.checkpoint.fingerprint import weights_fingerprint
from redrafter_vllm.utils.atomic import remove_unfinished
from redrafter_vllm.utils.paths import free_space

FORMAT = 3


class CachedTarget(Target):
    """Hidden states and top-1 tokens from the cache, logits from the target's head.

    Padding has hidden states of zero and no top-1 token (−1).

    Raises:
        UnknownTextError: (from `outputs`) a text is not in the cache.
    """

    stores_states = True

    def __init__(self, cache: HiddenCache, index: TextIndex, head: TargetHead, device: torch.device) -> None:
        self._cache, self._index, self._head = cache, index, head.to(device)
        self.embedding = self._head.embedding

    @property
    def head_weight(self) -> Tensor:
        return self._head.weight

    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        return self.outputs_from(*self.states(tokens, positions), draft_tokens)

    def states(self, tokens: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = torch.zeros(*tokens.shape, self.hidden_size, dtype=DTYPE)
        top1_ids = torch.full(tokens.shape, -1)
        for row, first, text in self._index.find(tokens, positions):
            stored, room = self._cache.read(text), tokens.shape[1] - first
            place = slice(first, first + len(stored.hidden))
            hidden[row, place], top1_ids[row, place] = stored.hidden[:room], stored.top1_ids[:room]
        return hidden, top1_ids

    @torch.no_grad()
    def outputs_from(self, hidden: Tensor, top1_ids: Tensor, draft_tokens: Tensor | None = None) -> TargetOutputs:
        hidden = hidden.to(self.device, non_blocking=True)
        return TargetOutputs(hidden, self._head.restricted(draft_tokens).logits(hidden), top1_ids.to(self.device))


def open_cached_target(
    job: Job,
    config: DistillConfig,
    context: TrainContext,
    target: DeferredTarget,
    batches: Iterable[Windows],
    held_out: Windows,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> CachedTarget:
    """The cache of this training, after all processes have filled what is missing and released `target`.

    Raises:
        HiddenCacheError: the folder contains other states, has too little space, or cannot be written.
    """
    assert job.hidden_cache is not None
    index, trained = texts_of(batches, config.budget.steps, held_out)
    text_config = load_config(job.target, trust_remote_code=job.trust_remote_code).get_text_config()
    cache = HiddenCache(job.hidden_cache, index.lengths, text_config.hidden_size, shard_bytes=shard_bytes)
    weights = context.made_by_first(partial(weights_fingerprint, job.target))
    identity = cache_identity(job, config, weights, index, context.device) | {"shard_bytes": shard_bytes}
    settings = text_settings(job, config)
    begun = cache.check_identity(identity, settings) and cache.has_head()
    everything = list(range(cache.num_shards))
    begun, missing = context.gather((begun, cache.missing() if begun else everything))[0]
    if missing or not begun:
        if context.rank == 0:
            print(describe(cache, len(index), missing))
        head_bytes = 0 if begun else 2 * text_config.vocab_size * text_config.hidden_size * 4
        check_space(cache, cache.size(missing) + head_bytes, context)
        with ExitStack() as stack:
            if context.rank == 0:
                cache.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(cache.folder, "choose another --hidden-cache"))
                remove_unfinished(cache.folder)
                if not begun:
                    cache.begin(identity, settings, target.head())
            context.barrier()
            tokens, precision = tokens_at_once(job, config), config.mixed_precision
            fill(cache, index, target, missing, context, tokens=tokens, trained=trained, precision=precision)
            context.barrier()
        if left := cache.missing():
            raise HiddenCacheError(
                f"worker {context.rank} does not find {len(left)} shards in {cache.folder}: --hidden-cache must be on "
                "storage that all workers share"
            )
    target.release()
    index.forget_tokens()
    return CachedTarget(cache, index, cache.head(), context.device)


def fill(
    cache: HiddenCache,
    index: TextIndex,
    target: TargetModel,
    shards: list[int],
    context: TrainContext,
    *,
    tokens: int,
    trained: int,
    precision: MixedPrecision = "auto",
) -> None:
    """Computes and stores this process's share of `shards`, in batches of at most `tokens` tokens with their padding.

    The first `trained` texts are computed as in the training loop, with products in `precision`; the others, used for
    evaluation, in the target's dtype. The content of a shard depends only on its number, not on the number of
    processes or on the existing shards.
    """
    own = shards[context.rank :: context.world_size]
    for shard in tqdm(own, desc="hidden states", unit="shard", disable=context.rank != 0):
        texts = cache.texts(shard)
        states: dict[int, StoredStates] = {}
        for mixed in (True, False):
            for batch in batches_by_length([text for text in texts if (text < trained) == mixed], cache.length, tokens):
                with mixed_precision(context.device, precision if mixed else "none"):
                    states |= zip(batch, _states(index, batch, target), strict=True)
        ordered = [states[text] for text in texts]
        hidden, top1_ids = [each.hidden for each in ordered], [each.top1_ids for each in ordered]
        cache.write(shard, StoredStates(torch.cat(hidden), torch.cat(top1_ids)))


def batches_by_length(texts: Iterable[int], length: Callable[[int], int], tokens: int) -> Iterator[list[int]]:
    """Batches of texts of similar length, of at most `tokens` tokens when padded to the longest, or of one text."""
    batch: list[int] = []
    for text in sorted(texts, key=length):
        if batch and length(text) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _states(index: TextIndex, texts: list[int], target: TargetModel) -> list[StoredStates]:
    contents = [torch.from_numpy(index.tokens(text)).long() for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(contents, batch_first=True)
    outputs = target.outputs(padded.to(target.device))
    hidden, top1_ids = outputs.hidden.to(DTYPE).cpu(), outputs.top1_ids.cpu()
    return [
        StoredStates(hidden[row, : len(content)], top1_ids[row, : len(content)]) for row, content in enumerate(contents)
    ]


def tokens_at_once(job: Job, config: DistillConfig) -> int:
    """Tokens per forward pass: as many as in training."""
    return config.rows_at_once(job.workers[0]) * config.window


def check_space(cache: HiddenCache, needed: int, context: TrainContext) -> None:
    """Raises HiddenCacheError in all processes when `needed` bytes do not fit where rank 0 sees the cache."""
    free = context.gather(free_space(cache.folder))[0]
    if needed > free:
        raise HiddenCacheError(
            f"the hidden states need {readable(needed)} more, and {cache.folder} has {readable(free)} free: "
            "choose another --hidden-cache, fewer steps or data, or train without a cache"
        )


def describe(cache: HiddenCache, texts: int, missing: list[int]) -> str:
    """The message before a cache is filled."""
    everything = list(range(cache.num_shards))
    return (
        f"hidden states of {texts:,} texts in {cache.folder}: {readable(cache.size(everything))} in "
        f"{cache.num_shards} shards, of which {len(missing)} with {readable(cache.size(missing))} are missing; "
        f"{readable(free_space(cache.folder))} free"
    )


def cache_identity(
    job: Job, config: DistillConfig, weights: str, index: TextIndex, device: torch.device
) -> dict[str, Any]:
    """What determines the hidden states; `weights` is the target's `weights_fingerprint`."""
    return {
        "format": FORMAT,
        "target": weights,
        "dtype": str(target_dtype(job, device)).removeprefix("torch."),
        "quantization": job.target_quantization,
        "mixed_precision": resolved(device, config.mixed_precision),
        "texts": {"count": len(index), "tokens": index.total, "digest": index.digest()},
    }


def text_settings(job: Job, config: DistillConfig) -> dict[str, Any]:
    """How the texts were chosen."""
    keys = ("window", "packing", "batch_size", "response_fraction", "fixed_windows", "seed")
    return {
        "target": absolute_place(job.target),
        "data": absolute_place(job.data),
        "chat_template": template_fingerprint(job.chat_template),
        **job.choices,
        "evaluate_windows": job.evaluate_windows,
        "max_steps": config.budget.steps,
        "responses": asdict(config.responses),
        **{key: getattr(config, key) for key in keys},
    }
