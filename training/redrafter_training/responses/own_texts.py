# SPDX-License-Identifier: Apache-2.0
"""Texts that the first training worker has the target write, kept in the run's folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from redrafter_training.config.recipe import DistillConfig, ResponseConfig
from redrafter_training.distributed.context import TrainContext
from redrafter_training.responses.engine import Engine, Request
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.target.model import TargetModel
from redrafter_vllm.utils.atomic import atomic_file

# The settings that the name of a file depends on, in the order that earlier versions hashed them in.
NAMED_BY = (
    "count",
    "temperatures",
    "min_prompt",
    "max_prompt",
    "batch_size",
    "folders",
    "longest_repeat",
    "any_target",
)


def with_temperatures(prompts: Sequence[Tensor], config: ResponseConfig) -> list[tuple[Tensor, float]]:
    """At most `config.count` prompts, each with a temperature, which changes from batch to batch.

    `prompts` are different ones. Where they are fewer than `config.count`, they come again at another temperature; no
    prompt is answered greedily twice.
    """
    greedy: set[int] = set()
    chosen = []
    for place in range(config.count if prompts else 0):
        time, number = divmod(place, len(prompts))
        temperature = config.temperatures[(number // config.batch_size + time) % len(config.temperatures)]
        if temperature > 0 or number not in greedy:
            chosen.append((prompts[number], temperature))
        if temperature == 0:
            greedy.add(number)
    return chosen


def write_texts(
    engine: Engine, prompts: Sequence[tuple[Tensor, float]], window: int, longest_repeat: int, seed: int
) -> list[tuple[Tensor, int]]:
    """Different texts of at most `window` tokens: prompts, each at its temperature, with the target's responses.

    Returns:
        The texts, and how many tokens of each are the prompt.
    """
    # Prompts of one temperature and similar length share a batch.
    in_order = sorted(prompts, key=lambda pair: (pair[1], len(pair[0])))
    requests = [
        Request(tuple(prompt.tolist()), window - len(prompt), temperature, seed, longest_repeat)
        for prompt, temperature in in_order
    ]
    texts: dict[tuple[int, ...], int] = {}
    for request, completion in zip(requests, engine(requests), strict=True):
        texts.setdefault((*request.prompt_ids, *completion.token_ids), len(request.prompt_ids))
    return [(torch.tensor(ids), start) for ids, start in texts.items()]


def own_responses(
    prompts: Sequence[Tensor],
    config: DistillConfig,
    target: TargetModel,
    context: TrainContext,
    folder: Path,
    written_by: tuple[Mapping[str, str], tuple[str, ...]],
) -> list[tuple[Tensor, int]]:
    """The target's texts after `prompts` and the prompts' lengths, written by rank 0 now or at an earlier start.

    A file of an earlier start is found by all that its texts depend on: the target's content and how it computes, the
    prompts, the settings.

    Args:
        folder: of the file.
        written_by: the target's fingerprint; its dtype and quantization.
    """
    wanted = with_temperatures(prompts, config.responses)
    digest = hashlib.sha256()
    for prompt, temperature in wanted:
        digest.update(f"{temperature} {prompt.tolist()}\n".encode())
    settings = {key: getattr(config.responses, key) for key in NAMED_BY}
    made_from = [*written_by, settings, config.window, config.seed, digest.hexdigest()]
    path = folder / f"responses-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}.pt"
    if context.rank == 0 and not path.is_file():
        engine = TransformersEngine(target, config.responses.batch_size, quiet=False)
        made = write_texts(engine, wanted, config.window, config.responses.longest_repeat, config.seed)
        with atomic_file(path) as temporary:
            torch.save(made, temporary)
    context.barrier()
    texts: list[tuple[Tensor, int]] = torch.load(path, weights_only=True)
    if context.rank == 0:
        print(f"{len(texts):,} different texts by the target after {len(prompts):,} different prompts")
    return texts
