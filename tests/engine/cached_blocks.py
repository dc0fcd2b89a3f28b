# SPDX-License-Identifier: Apache-2.0
"""The blocks that prefix caching keeps, of a plain engine and of one with trees."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, allow_tree_attention, runner, scheduler


def empty_caches(make_engine: MakeEngine, target: Path, *, asynchronous: bool) -> tuple[Any, Any]:
    """A plain engine and one with trees: the same attention backend, the same block size, nothing cached."""
    allow_tree_attention()
    plain = make_engine(target, attention_backend="CUSTOM", block_size=16)
    tree = make_engine(target, TREE, block_size=16, async_scheduling=asynchronous)
    for llm in (plain, tree):
        assert llm.llm_engine.reset_prefix_cache()
    return plain, tree


def assert_same_blocks(tree: Any, plain: Any) -> None:
    """Both engines have cached the same blocks, with the same content to the bit."""
    wanted, own = cached_blocks(plain), cached_blocks(tree)
    assert own.keys() == wanted.keys() and len(own) > 20
    for key, contents in own.items():
        assert all(torch.equal(content, wanted[key][0]) for content in contents)


def cached_blocks(llm: Any) -> dict[Any, list[Tensor]]:
    """Content of every block that prefix caching would hand out, by its hash: [layers, kv heads, size, width]."""
    model_runner = runner(llm)
    context = model_runner.compilation_config.static_forward_context
    caches = [context[name].kv_cache for name in model_runner.kv_cache_config.kv_cache_groups[0].layer_names]
    found: dict[Any, list[Tensor]] = {}
    for block in scheduler(llm).kv_cache_manager.block_pool.blocks:
        if block.block_hash is not None:
            found.setdefault(block.block_hash, []).append(torch.stack([cache[block.block_id] for cache in caches]))
    return found
