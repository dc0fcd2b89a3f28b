# SPDX-License-Identifier: Apache-2.0
"""New weights in a running engine: of the drafter, from a checkpoint or from a trainer, or of the target.

Requests in flight continue: drafts decide what is verified, not what is emitted.
"""

from dataclasses import asdict
from typing import Any

import torch
from vllm.logger import init_logger

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.io import read_config
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.integration.worker.draft_model import NewWeightsError
from redrafter_vllm.integration.worker.parallel import send_embedding
from redrafter_vllm.model.drafter import Drafter

logger = init_logger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name


def reload_drafter(worker: Any, path: str) -> None:
    """Draft with the checkpoint at `path` from the next round on.

    `path` may be anything that the option `model` accepts. The drafter must have the config of the one being served.

    Raises:
        ValueError: One sentence; drafting goes on with the old weights.
    """
    vllm_config = worker.vllm_config
    speculator = worker.model_runner.speculator
    if speculator is None:  # a stage of a pipeline that does not draft
        if vllm_config.speculative_config.drafting.project_embedding:
            send_embedding(worker.get_model())
        return
    model = vllm_config.model_config
    if speculator.replace_drafter(lambda: _read(path, model.model, speculator.drafter.config, model.dtype)):
        logger.info("ReDrafter: drafting with %s from now on", path)


def _read(path: str, target: str, served: DrafterConfig, dtype: torch.dtype) -> Drafter:
    if not isinstance(path, str) or not path:
        raise NewWeightsError(f"The drafter to load is named by a directory or a hub id, not by {path!r}.")
    directory = resolve_drafter(path, target)
    config, _ = read_config(directory)
    if config != served:
        own, new = asdict(served), asdict(config)
        differing = ", ".join(f"{name} {new[name]} instead of {own[name]}" for name in own if new[name] != own[name])
        raise NewWeightsError(
            f"The drafter at {directory} has {differing}: a running engine takes weights for the drafter that it has; "
            "start another engine with this one."
        )
    return Drafter.from_pretrained(directory, dtype=dtype)
