# SPDX-License-Identifier: Apache-2.0
"""Kernels of a decode step at Vicuna-7B's sizes: their times beside what the bandwidth needs for their bytes.

Tree attention, by our kernels alone and with FlashAttention for the context as it is served, is set beside
FlashAttention's causal attention of as many rows over the same cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.timing import bandwidth, seconds
from benchmarks.shapes import find_shape
from redrafter_vllm.ops.tree_attention import TreeBatch

BLOCK_SIZE = 16
SLOWER = 1.2  # tree attention may take so many times as long as FlashAttention


@dataclass(frozen=True)
class Sizes:
    """A step: requests, cached tokens of each, drafts of each, beams, draft vocabulary."""

    batch: int
    context: int
    nodes: int = 16
    beams: int = 4
    draft_tokens: int = 8000


@dataclass(frozen=True)
class Case:
    """One kernel; `bytes` are those that it must read and write."""

    name: str
    call: Callable[[], object]
    bytes: int
    rival: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timed:
    """Seconds of a case, of its byte floor, and of its rival."""

    name: str
    seconds: float
    floor: float
    rival: float | None

    def __str__(self) -> str:
        against = "" if self.rival is None else f", {self.seconds / self.rival:.2f} of FlashAttention"
        return f"{self.name} {1e6 * self.seconds:.1f} µs (floor {1e6 * self.floor:.1f}{against})"


def run(device: str, scratch: Path) -> Outcome:
    if device == "cuda":
        sizes, shape = [Sizes(1, 512), Sizes(1, 4096), Sizes(16, 512), Sizes(16, 4096)], "vicuna-7b"
    else:
        sizes, shape = [Sizes(2, 40, 4, 2, 300)], "llama-0.1b"
    speed = bandwidth(device, scratch)
    timed = [
        Timed(case.name, seconds(case.call, device), case.bytes / speed, case.rival and seconds(case.rival, device))
        for size in sizes
        for case in cases(device, shape, size)
    ]
    slow = [case for case in timed if case.rival is not None and case.seconds > SLOWER * case.rival]
    return Outcome(not slow, "; ".join(map(str, timed)), {"cases": [asdict(case) for case in timed]})


def cases(device: str, shape: str, sizes: Sizes) -> Iterator[Case]:
    yield from attention_cases(device, shape, sizes)
    where = f"at batch {sizes.batch}"
    logits = torch.randn(sizes.batch, sizes.beams, sizes.draft_tokens, device=device, dtype=torch.bfloat16)
    scores = torch.zeros(sizes.batch, sizes.beams, device=device)
    yield Case(f"beam step {where}", lambda: _beam_step(logits, scores), logits.nbytes)
    tokens = torch.randint(8, (sizes.batch, sizes.beams, 5), device=device)
    log_probs = -torch.rand(tokens.shape, device=device)
    yield Case(f"prefix tree {where}", lambda: _prefix_tree(tokens, log_probs, sizes.nodes), tokens.nbytes)


def attention_cases(device: str, shape_name: str, sizes: Sizes) -> Iterator[Case]:
    """One layer's attention of every request's root and drafts."""
    shape, dtype = find_shape(shape_name), torch.bfloat16 if device == "cuda" else torch.float32
    rows, length = 1 + sizes.nodes, sizes.context + 1 + sizes.nodes
    pages = -(-length // BLOCK_SIZE)
    size = (sizes.batch * pages, shape.num_key_value_heads, BLOCK_SIZE, 2 * shape.head_dim)
    cache = torch.randn(size, device=device, dtype=dtype)
    query = torch.randn(sizes.batch * rows, shape.num_attention_heads, shape.head_dim, device=device, dtype=dtype)
    batch = step_of(sizes, pages, device)
    scale = shape.head_dim**-0.5
    out = torch.empty_like(query)
    needed = sizes.batch * length * 2 * shape.num_key_value_heads * shape.head_dim * cache.itemsize + 2 * query.nbytes
    rival = (lambda: _flash_attention(query, cache, batch, length, scale)) if device == "cuda" else None
    where = f"at batch {sizes.batch}, context {sizes.context}"
    yield Case(f"tree attention {where}", lambda: _tree_attention(query, cache, batch, scale, out), needed, rival)
    if device == "cuda":
        context = torch.full_like(batch.seq_lens, sizes.context)
        yield Case(
            f"tree attention on FlashAttention {where}",
            lambda: _tree_attention_on_flash(query, cache, batch, context, length, scale, out),
            needed,
            rival,
        )


def step_of(sizes: Sizes, pages: int, device: str) -> TreeBatch:
    """Every request with a full tree: two children of the root, and of each node."""
    rows = 1 + sizes.nodes
    ancestors = torch.eye(sizes.nodes, dtype=torch.bool)
    for node in range(2, sizes.nodes):
        ancestors[node] |= ancestors[(node - 2) // 2]
    return TreeBatch(
        block_table=torch.arange(sizes.batch * pages, dtype=torch.int32, device=device).view(sizes.batch, pages),
        query_start_loc=torch.arange(0, sizes.batch * rows + 1, rows, dtype=torch.int32, device=device),
        seq_lens=torch.full((sizes.batch,), sizes.context + rows, dtype=torch.int32, device=device),
        ancestors=ancestors.expand(sizes.batch, -1, -1).contiguous().to(device),
        num_drafts=torch.full((sizes.batch,), sizes.nodes, dtype=torch.int32, device=device),
        max_query_len=rows,
    )


def _tree_attention(query: Tensor, cache: Tensor, batch: TreeBatch, scale: float, out: Tensor) -> object:
    from redrafter_vllm.ops.tree_attention import tree_attention

    return tree_attention(query, cache, batch, scale, out=out)


def _tree_attention_on_flash(
    query: Tensor, cache: Tensor, batch: TreeBatch, context: Tensor, length: int, scale: float, out: Tensor
) -> object:
    from redrafter_vllm.ops.tree_attention.kernel import attend_nodes

    part, log_sum = _flash(query, cache, batch, context, length, scale, causal=False)
    return attend_nodes(query, cache, batch, part[None], log_sum[None], scale, out=out)


def _flash_attention(query: Tensor, cache: Tensor, batch: TreeBatch, length: int, scale: float) -> object:
    return _flash(query, cache, batch, batch.seq_lens, length, scale, causal=True)


def _flash(
    query: Tensor, cache: Tensor, batch: TreeBatch, key_lens: Tensor, length: int, scale: float, causal: bool
) -> Any:
    """Output and log-sums, by the version of FlashAttention that serves on this GPU."""
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    key, value = cache.transpose(1, 2).chunk(2, dim=-1)
    return flash_attn_varlen_func(
        query,
        key,
        value,
        max_seqlen_q=batch.max_query_len,
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_k=length,
        seqused_k=key_lens,
        softmax_scale=scale,
        causal=causal,
        block_table=batch.block_table,
        return_softmax_lse=True,
        fa_version=get_flash_attn_version(head_size=query.shape[2]),
    )


def _beam_step(logits: Tensor, scores: Tensor) -> object:
    from redrafter_vllm.ops.beam_search import beam_step

    return beam_step(logits, scores)


def _prefix_tree(tokens: Tensor, log_probs: Tensor, nodes: int) -> object:
    from redrafter_vllm.ops.prefix_tree import prefix_tree

    return prefix_tree(tokens, log_probs, nodes)
