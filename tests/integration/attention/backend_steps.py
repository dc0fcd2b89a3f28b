# SPDX-License-Identifier: Apache-2.0
"""Steps as vLLM's runner passes them to a backend, and each row's attention by definition."""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redrafter_vllm.integration.attention.metadata import StepTrees
from tests.ops.attention_steps import Request, Step, dense_row, visible_slots
from tests.ops.devices import DEVICE

# Requests with drafts lead, as the runner sorts them; prompts of several lengths follow.
MIXED: list[Request | None] = [(37, 0, 5), (0, 0, 3), (20, 2, 4), (64, 0, 1), (21, 0, 0), (0, 33, 0), (50, 20, 0)]
MAX_NUM_SEQS = 12


def backend_config(step: Step, *, full_graphs: bool = False, cache_dtype: str = "auto") -> Any:
    """What backends read of vLLM's configuration."""
    num_nodes = step.batch.ancestors.shape[1]
    return SimpleNamespace(
        num_speculative_tokens=num_nodes,
        speculative_config=SimpleNamespace(num_speculative_tokens=num_nodes, parallel_drafting=False),
        model_config=SimpleNamespace(
            dtype=step.query.dtype,
            rswa_window=None,
            is_mm_prefix_lm=False,
            hf_config=SimpleNamespace(model_type="llama"),
            get_num_attention_heads=lambda parallel: step.heads[0],
            get_num_kv_heads=lambda parallel: step.heads[1],
            get_head_size=lambda: step.query.shape[2],
        ),
        parallel_config=SimpleNamespace(cp_kv_cache_interleave_size=1),
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
        compilation_config=SimpleNamespace(
            cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: full_graphs),
            max_cudagraph_capture_size=512 if full_graphs else 0,
            cudagraph_capture_sizes=[1, 2, 4, 8],
            static_forward_context={},
        ),
        attention_config=SimpleNamespace(flash_attn_max_num_splits_for_cuda_graph=32),
        kernel_config=SimpleNamespace(enable_jit_warmup=False),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=512),
    )


def make_builder(name: str, step: Step, **options: Any) -> Any:
    """The metadata builder of the backend `flash` or `triton`; `options` are `backend_config`'s."""
    prefix, module = name.capitalize(), _module(name)
    builder = getattr(module, f"{prefix}TreeMetadataBuilder")
    return builder(cache_spec(step), ["layer"], backend_config(step, **options), DEVICE)


def make_impl(name: str, step: Step, cache_dtype: str = "auto") -> Any:
    """One layer's attention by the backend `flash` or `triton`."""
    (num_heads, num_kv_heads), head_size = step.heads, step.query.shape[2]
    impl = getattr(_module(name), f"{name.capitalize()}TreeImpl")
    return impl(num_heads, head_size, step.scale, num_kv_heads, None, None, cache_dtype)


def _module(name: str) -> Any:
    # Its imports depend on the machine, and the replacements must be installed before.
    return importlib.import_module(f"redrafter_vllm.integration.attention.{name}")


def cache_spec(step: Step, cache_dtype: torch.dtype | None = None) -> Any:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    return FullAttentionSpec(
        block_size=step.cache.shape[2],
        num_kv_heads=step.heads[1],
        head_size=step.query.shape[2],
        head_size_v=step.query.shape[2],
        dtype=cache_dtype or step.query.dtype,
    )


def common_metadata(step: Step) -> Any:
    """The step as vLLM's runner passes it to a builder."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    starts, lengths = torch.tensor(step.starts, dtype=torch.int32), torch.tensor(step.seq_lens, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=step.batch.query_start_loc,
        query_start_loc_cpu=starts,
        seq_lens=step.batch.seq_lens,
        seq_lens_cpu_upper_bound=lengths + 3,
        num_reqs=len(step.requests),
        num_actual_tokens=step.starts[-1],
        max_query_len=max(step.query_lens),
        max_seq_len=int(lengths.max()) + 3,
        block_table_tensor=step.batch.block_table,
        slot_mapping=torch.arange(step.starts[-1], device=DEVICE),
        positions=torch.arange(step.starts[-1], device=DEVICE),
        is_prefilling=torch.zeros(len(step.requests), dtype=torch.bool),
    )


def step_trees(step: Step, num_reqs: int | None = None) -> StepTrees:
    """The drafts of the first `num_reqs` requests; the requests behind them are padding."""
    counts = step.batch.num_drafts[:num_reqs]
    lengths = np.array(step.query_lens[:num_reqs])
    return StepTrees(step.batch.ancestors[:num_reqs], counts.long(), counts.cpu().numpy(), lengths)


def layer_scales(q: float = 1.0, k: float = 1.0, v: float = 1.0) -> Any:
    """The part of vLLM's attention layer that implementations read."""
    scales = {"_q_scale": q, "_k_scale": k, "_v_scale": v}
    return SimpleNamespace(**{name: torch.tensor(value, device=DEVICE) for name, value in scales.items()})


def forward(impl: Any, step: Step, metadata: Any, layer: Any, out: Tensor | None = None) -> Tensor:
    """One layer's attention into a poisoned output; keys and values are in the cache already.

    Slots that no request has stored are filled with numbers first: vLLM's kernels multiply them by weights of 0.
    """
    if step.cache.is_floating_point():
        step.cache.nan_to_num_()
    out = step.poisoned_out() if out is None else out
    key = torch.empty(len(step.query), step.heads[1], step.query.shape[2], dtype=step.query.dtype, device=DEVICE)
    result: Tensor = impl.forward(layer, step.query, key, key, step.cache, metadata, out)
    return result


def dense_attention(step: Step, layer: Any) -> Tensor:
    """Every row over exactly its visible keys; rows without a request keep the poison."""
    out, group = torch.full(step.query.shape, -777.0), step.heads[0] // step.heads[1]
    query, k_scale, v_scale = (step.query.float() * layer._q_scale).cpu(), layer._k_scale.cpu(), layer._v_scale.cpu()
    for index, entry in enumerate(step.entries):
        key, value = entry.chunk(2, dim=-1)
        for row in range(step.query_lens[index]):
            slots = visible_slots(step.query_lens[index], step.seq_lens[index], step.parents[index], row)
            at = step.starts[index] + row
            for head in range(step.heads[0]):
                keys, values = key[slots, head // group], value[slots, head // group]
                out[at, head] = dense_row(query[at, head], keys * k_scale, values * v_scale).float()
    return out.to(DEVICE)
