# SPDX-License-Identifier: Apache-2.0
"""What an idle engine has not released, and for which requests the trees that it verifies were drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor

from redrafter_vllm.drafting.buffers import BatchDrafts, DraftRows, RowLayout
from tests.engine.generation import runner, scheduler


def leaks(llm: Any) -> list[str]:
    """Blocks, rows and requests that an engine without work has not released.

    Not checked: the front end's `parent_requests`, which keeps an aborted request of several completions in plain
    vLLM, too.
    """
    manager = scheduler(llm).kv_cache_manager
    pool = manager.block_pool
    found = []
    if (free := pool.get_num_free_blocks()) != pool.num_gpu_blocks - 1:  # one is the null block
        found.append(f"{pool.num_gpu_blocks - 1 - free} blocks are not free")
    held = [block.block_id for block in pool.blocks if block.ref_cnt and not block.is_null]
    if held:
        found.append(f"blocks {held} are referred to")
    for single in manager.coordinator.single_type_managers:
        if left := {name for name, blocks in single.req_to_blocks.items() if blocks}:
            found.append(f"requests {left} have blocks")
    states = runner(llm).req_states
    if sorted(states.free_indices) != list(range(states.max_num_reqs)) or states.req_id_to_index:
        found.append(f"request rows: {len(states.free_indices)} of {states.max_num_reqs} are free")
    front = llm.llm_engine.output_processor
    for owner, name in (
        (scheduler(llm), "requests"),
        (scheduler(llm), "running"),
        (front, "request_states"),
        (front, "external_req_ids"),
    ):
        if left := getattr(owner, name):
            found.append(f"{name}: {left}")
    return found


@contextmanager
def watched_rows(llm: Any) -> Iterator[list[str]]:
    """Yields a list of the verified trees that were not drawn for the request in whose row they are."""
    states = runner(llm).req_states
    owner: dict[int, str | None] = {}
    strangers: list[str] = []
    write, prepare = DraftRows.write, DraftRows.prepare

    def watched_write(self: DraftRows, rows: Tensor, *args: Any) -> None:
        owner.update({row: states.index_to_req_id.get(row) for row in rows.tolist()})
        write(self, rows, *args)

    def watched_prepare(self: DraftRows, idx_mapping: Tensor, *args: Any) -> tuple[BatchDrafts, RowLayout]:
        drafts, layout = prepare(self, idx_mapping, *args)
        for row, has_tree in zip(idx_mapping.tolist(), drafts.valid.any(dim=1).tolist(), strict=True):
            if has_tree and owner.get(row) != states.index_to_req_id[row]:
                strangers.append(f"{states.index_to_req_id[row]} verified a tree of {owner.get(row)}")
        return drafts, layout

    with patch.object(DraftRows, "write", watched_write), patch.object(DraftRows, "prepare", watched_prepare):
        yield strangers
