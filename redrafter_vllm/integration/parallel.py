# SPDX-License-Identifier: Apache-2.0
"""Serving on several ranks: this rank's part of the drafter and of the embedding that it shares with the target.

Tensor parallelism: every rank drafts, each with its slice of the drafter's output layer and the target's own slice of
the embedding (see `redrafter_vllm.sharding`). Pipeline parallelism: the last stage drafts, and gets the embedding from
the first. Data parallelism: each replica is an engine of its own, with a drafter of its own.
"""

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafter import Drafter
from redrafter_vllm.integration.drafter_loading import pack_drafter
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.sharding import ShardedDrafter, ShardedEmbedding, shard_drafter


def load_part(path: str, drafting: DraftingConfig, vllm_config: VllmConfig, device: torch.device) -> Drafter:
    """This rank's part of the drafter at `path`, packed."""
    group, dtype = get_tp_group(), vllm_config.model_config.dtype
    if group.world_size == 1:
        drafter = Drafter.from_pretrained(path, dtype=dtype, device=device)
        return pack_drafter(drafter, drafting, vllm_config)
    # The whole output layer never reaches the device.
    drafter = Drafter.from_pretrained(path, dtype=dtype, device="cpu")
    own = shard_drafter(drafter, group).to(device)
    return ShardedDrafter(pack_drafter(own, drafting, vllm_config), drafter.config, group)


def share_embedding(model: nn.Module, drafter: Drafter) -> Tensor | ShardedEmbedding:
    """What the drafter takes of each token, from the target's embedding; on the last stage.

    Raises UnsupportedTargetError where the target has no embedding, several, or a quantised one.
    """
    rows, first_id = _own_rows(model) if get_pp_group().is_first_rank else _receive_rows(model)
    inputs, group = drafter.token_inputs(rows), get_tp_group()
    return inputs if group.world_size == 1 else ShardedEmbedding(inputs, first_id, group)


def send_embedding(model: nn.Module) -> None:
    """What a stage other than the last does while that one calls `share_embedding`."""
    stages = get_pp_group()
    if stages.is_first_rank:
        rows, first_id = _own_rows(model)
        stages.send_object((rows.shape, rows.dtype, first_id), dst=stages.world_size - 1)
        stages.send(rows.contiguous(), dst=stages.world_size - 1)


def _receive_rows(model: nn.Module) -> tuple[Tensor, int]:
    stages = get_pp_group()
    shape, dtype, first_id = stages.recv_object(src=0)
    rows = stages.recv(shape, dtype, src=0)
    # The first stage cannot know that this one has the table as well, when it is the LM head's.
    return _own_rows(model) if _tables(model) else (rows, first_id)


def _own_rows(model: nn.Module) -> tuple[Tensor, int]:
    """This rank's rows of the target's embedding, and the token id of the first; vLLM pads behind them."""
    tables = _tables(model)
    if len(tables) != 1:
        raise UnsupportedTargetError(
            f"ReDrafter shares the target's token embedding, but {type(model).__name__} has {len(tables)} of them."
        )
    method = tables[0].quant_method
    if not isinstance(method, UnquantizedEmbeddingMethod):
        raise UnsupportedTargetError(
            f"ReDrafter shares the target's token embedding, which {type(method).__name__} has quantised; leave the "
            "embedding out of the quantisation."
        )
    shard = tables[0].shard_indices
    return tables[0].weight[: shard.num_org_elements], shard.org_vocab_start_index


def _tables(model: nn.Module) -> list[VocabParallelEmbedding]:
    return [
        module
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    ]
