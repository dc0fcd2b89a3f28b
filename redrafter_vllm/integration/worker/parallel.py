# SPDX-License-Identifier: Apache-2.0
"""Serving on several ranks: this rank's part of the drafter, and of the embedding that it shares with the target.

Tensor parallelism: every rank drafts, each with its slice of the drafter's output layer and the target's own slice of
the embedding (see `redrafter_vllm.model.sharded`). Pipeline parallelism: the last stage drafts, and gets the embedding
from the first. Data parallelism: each replica is an independent engine with its own drafter.
"""

from collections.abc import Callable
from typing import TypeVar

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
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.integration.worker.drafter_loading import pack_drafter
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.sharded import ShardedDrafter, ShardedEmbedding, shard_drafter

T = TypeVar("T")
TokenInputs = Tensor | ShardedEmbedding  # the drafter's input for each token, [V, H]


def load_part(path: str, drafting: DraftingConfig, vllm_config: VllmConfig, device: torch.device) -> DrafterInterface:
    """This rank's part of the drafter at `path`, packed."""
    # With several ranks none gets the whole output layer on its device.
    where = device if get_tp_group().world_size == 1 else "cpu"
    drafter = Drafter.from_pretrained(path, dtype=vllm_config.model_config.dtype, device=where)
    return pack_part(drafter, drafting, vllm_config, device)


def pack_part(
    drafter: Drafter, drafting: DraftingConfig, vllm_config: VllmConfig, device: torch.device
) -> DrafterInterface:
    """This rank's part of `drafter`, packed, on `device`."""
    group = get_tp_group()
    if group.world_size == 1:
        return pack_drafter(drafter.to(device), drafting, vllm_config)
    own = shard_drafter(drafter, group).to(device)
    return ShardedDrafter(pack_drafter(own, drafting, vllm_config), drafter.config, group)


def all_or_none(work: Callable[[], T], vllm_config: VllmConfig) -> T | None:
    """The result of `work` on this rank, if it has succeeded on every rank of the tensor-parallel group.

    If it has raised on any rank, this raises on every rank, but under vLLM's executor `mp` only on the last one; the
    others get None. That executor reads the ranks' replies in order up to the first error, and takes those behind it
    for replies to its next call.
    """
    group = get_tp_group()
    result: T | None = None
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:  # any error, as the other ranks wait for this one's message
        problem = error
    messages: list[str | None] = [None if problem is None else str(problem)] * group.world_size
    if group.world_size > 1:
        torch.distributed.all_gather_object(messages, messages[0], group=group.cpu_group)
    message = next((message for message in messages if message is not None), None)
    if message is None:
        return result
    last = group.rank_in_group == group.world_size - 1
    if vllm_config.parallel_config.distributed_executor_backend == "mp" and not last:
        return None
    raise problem or ValueError(message)


def share_embedding(model: nn.Module, drafter: DrafterInterface) -> TokenInputs:
    """The drafter's input for each token, from the target's embedding; on the last stage.

    Raises:
        UnsupportedTargetError: The target has no embedding, several, or a quantised one.
    """
    rows, first_id = target_rows(model)
    inputs, group = drafter.token_inputs(rows), get_tp_group()
    return inputs if group.world_size == 1 else ShardedEmbedding(inputs, first_id, group)


def refill(inputs: TokenInputs, rows: Tensor, drafter: DrafterInterface) -> None:
    """Compute the result of `share_embedding` again, in place, from this rank's rows of the embedding."""
    table = _table(inputs)
    fresh = drafter.token_inputs(rows, out=table)
    if fresh.data_ptr() != table.data_ptr():  # a copy that another stage has sent
        table.copy_(fresh)


def own_table(inputs: TokenInputs, model: nn.Module) -> Tensor | None:
    """The memory of `inputs` if it is not the target's: a product, or a copy that another stage has sent."""
    table = _table(inputs)
    theirs = {embedding.weight.data_ptr() for embedding in _tables(model)}
    return None if table.data_ptr() in theirs else table


def _table(inputs: TokenInputs) -> Tensor:
    return inputs.rows if isinstance(inputs, ShardedEmbedding) else inputs


def target_rows(model: nn.Module) -> tuple[Tensor, int]:
    """This rank's rows of the target's embedding, and the token id of the first; on the last stage."""
    return _own_rows(model) if get_pp_group().is_first_rank else _receive_rows(model)


def send_embedding(model: nn.Module) -> None:
    """Called on a stage other than the last, while that one calls `share_embedding` or `target_rows`."""
    stages = get_pp_group()
    if stages.is_first_rank:
        rows, first_id = _own_rows(model)
        stages.send_object((rows.shape, rows.dtype, first_id), dst=stages.world_size - 1)
        stages.send(rows.contiguous(), dst=stages.world_size - 1)


def _receive_rows(model: nn.Module) -> tuple[Tensor, int]:
    stages = get_pp_group()
    shape, dtype, first_id = stages.recv_object(src=0)
    rows = stages.recv(shape, dtype, src=0)
    # This stage has the table as well if the LM head uses it, which the first stage cannot know.
    return _own_rows(model) if _tables(model) else (rows, first_id)


def _own_rows(model: nn.Module) -> tuple[Tensor, int]:
    """This rank's rows of the target's embedding, and the token id of the first; vLLM's padding rows follow them."""
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
