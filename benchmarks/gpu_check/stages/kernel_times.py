# SPDX-License-Identifier: Apache-2.0
"""Times of a decode step's kernels at Vicuna-7B's sizes, against the time for reading and writing their bytes.

Tree attention is compared with FlashAttention's causal attention of the same number of rows over the same caches. The
form that serving uses, with FlashAttention for the context, has to pass; our kernels alone, which serve where
FlashAttention is missing, are only timed. The caches of several layers take turns, as in serving, so that none is in
the L2 cache; FlashAttention 3 uses a schedule that is computed before, once for all layers, and splits as in a CUDA
graph. A beam step and a prefix tree read what has just been written, here as in serving: their bytes come from the L2
cache, so their byte floors mean little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.timing import bandwidth, seconds
from redrafter_vllm.ops.tree_attention import TreeBatch
from redrafter_vllm.predict.shapes import find_shape

BLOCK_SIZE = 16
MAX_RATIO = 1.2  # of tree attention's time to FlashAttention's
MIN_CACHE_BYTES = {"cuda": 1 << 28, "cpu": 0}  # of all layers; several times the L2 cache of an H200
SPLITS = 32  # vLLM's flash_attn_max_num_splits_for_cuda_graph


@dataclass(frozen=True)
class Sizes:
    """Sizes of a step: requests, cached tokens and drafts of each, beams, draft vocabulary."""

    batch: int
    context: int
    nodes: int = 16
    beams: int = 4
    draft_tokens: int = 8000


SIZES = {
    "cuda": (Sizes(1, 512), Sizes(1, 4096), Sizes(16, 512), Sizes(16, 4096)),
    "cpu": (Sizes(2, 40, 4, 2, 300),),
}

Calls = Sequence[Callable[[], object]]  # of one kernel, on the buffers of several layers


@dataclass(frozen=True)
class Case:
    """One kernel; `bytes` are read and written by one call, `rival` is compared with it."""

    name: str
    calls: Calls
    bytes: int
    rival: Calls | None = None
    judged: bool = False


@dataclass(frozen=True)
class Timed:
    """Seconds of a case, of its byte floor and of its rival, or the error of the case."""

    name: str
    judged: bool
    floor: float
    seconds: float | None = None
    rival: float | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        if self.seconds is None:
            return False
        return not self.judged or self.rival is None or self.seconds <= MAX_RATIO * self.rival

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.name} FAILED: {self.error}"
        against = "" if self.rival is None else f", {self.seconds / self.rival:.2f} of FlashAttention"
        return f"{self.name} {1e6 * self.seconds:.1f} µs (floor {1e6 * self.floor:.1f}{against})"


def run(call: Call) -> Outcome:
    shape, speed = "vicuna-7b" if call.device == "cuda" else "llama-0.1b", bandwidth(call)
    found: list[Timed] = []
    for sizes in SIZES[call.device]:
        for case in cases(call.device, shape, sizes):
            found.append(timed(case, call.device, speed))
            call.keep({"cases": [asdict(each) for each in found]})
    passed = all(each.passed for each in found)
    return Outcome(passed, "\n".join(map(str, found)), {"cases": [asdict(each) for each in found]})


def timed(case: Case, device: str, speed: float) -> Timed:
    """Time a case; an error is kept in the result, so that the other cases are timed."""
    try:
        took = seconds(case.calls, device)
        rival = None if case.rival is None else seconds(case.rival, device)
    except Exception as error:
        return Timed(case.name, case.judged, case.bytes / speed, error=f"{type(error).__name__}: {error}")
    return Timed(case.name, case.judged, case.bytes / speed, took, rival)


def cases(device: str, shape: str, sizes: Sizes) -> Iterator[Case]:
    yield from attention_cases(device, shape, sizes)
    where = f"at batch {sizes.batch}"
    logits = torch.randn(sizes.batch, sizes.beams, sizes.draft_tokens, device=device, dtype=torch.bfloat16)
    scores = torch.zeros(sizes.batch, sizes.beams, device=device)
    yield Case(f"beam step {where}", [lambda: _beam_step(logits, scores)], logits.nbytes)
    tokens = torch.randint(8, (sizes.batch, 5, sizes.beams), device=device)
    parents = torch.randint(sizes.beams, tokens.shape, device=device)
    beams = tokens, parents, -torch.rand(tokens.shape, device=device)
    needed = sum(x.nbytes for x in beams)
    yield Case(f"prefix tree {where}", [lambda: _prefix_tree(beams, sizes.nodes)], needed)


def attention_cases(device: str, shape_name: str, sizes: Sizes) -> Iterator[Case]:
    """One layer's attention for the root and the drafts of each request."""
    shape, dtype = find_shape(shape_name), torch.bfloat16 if device == "cuda" else torch.float32
    rows, length = 1 + sizes.nodes, sizes.context + 1 + sizes.nodes
    pages = -(-length // BLOCK_SIZE)
    size = (sizes.batch * pages, shape.num_key_value_heads, BLOCK_SIZE, 2 * shape.head_dim)
    query = torch.randn(sizes.batch * rows, shape.num_attention_heads, shape.head_dim, device=device, dtype=dtype)
    cache_bytes = sizes.batch * length * 2 * shape.num_key_value_heads * shape.head_dim * query.itemsize
    layers = min(shape.num_hidden_layers, 1 + -(-MIN_CACHE_BYTES[device] // cache_bytes))
    caches = [torch.randn(size, device=device, dtype=dtype) for _ in range(layers)]
    batch = step_of(sizes, pages, device)
    scale, out, needed = shape.head_dim**-0.5, torch.empty_like(query), cache_bytes + 2 * query.nbytes
    where = f"at batch {sizes.batch}, context {sizes.context}"
    ours = [partial(_tree_attention, query, cache, batch, scale, out) for cache in caches]
    if device != "cuda":
        yield Case(f"tree attention {where}", ours, needed)
        return
    causal = Flash(batch, batch.seq_lens, length, scale, True)
    context = Flash(batch, torch.full_like(batch.seq_lens, sizes.context), sizes.context, scale, False)
    rival = [partial(causal, query, cache) for cache in caches]
    served = [partial(_tree_attention_on_flash, context, query, cache, out) for cache in caches]
    yield Case(f"tree attention {where}", ours, needed, rival)
    yield Case(f"tree attention on FlashAttention {where}", served, needed, rival, judged=True)


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


@dataclass(frozen=True)
class Flash:
    """vLLM's FlashAttention, in the version for this GPU, of a step's rows over `key_lens` keys of each request."""

    batch: TreeBatch
    key_lens: Tensor  # [B]
    longest: int
    scale: float
    causal: bool
    schedules: dict[str, Any] = field(default_factory=dict)

    def __call__(self, query: Tensor, cache: Tensor) -> Any:
        """Output and log-sum-exp."""
        from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func, get_flash_attn_version

        version = get_flash_attn_version(head_size=query.shape[2])
        key, value = cache.transpose(1, 2).chunk(2, dim=-1)
        schedule = self.schedule(query, cache) if version == 3 else {}
        return flash_attn_varlen_func(
            query,
            key,
            value,
            max_seqlen_q=self.batch.max_query_len,
            cu_seqlens_q=self.batch.query_start_loc,
            max_seqlen_k=self.longest,
            seqused_k=self.key_lens,
            softmax_scale=self.scale,
            causal=self.causal,
            block_table=self.batch.block_table,
            return_softmax_lse=True,
            fa_version=version,
            **schedule,
        )

    def schedule(self, query: Tensor, cache: Tensor) -> dict[str, Any]:
        """The schedule, computed at the first call and kept, as serving computes one for all layers of a step."""
        from vllm.v1.attention.backends.fa_utils import get_scheduler_metadata

        if not self.schedules:
            self.schedules["num_splits"] = SPLITS
            self.schedules["scheduler_metadata"] = get_scheduler_metadata(
                batch_size=self.key_lens.shape[0],
                max_seqlen_q=self.batch.max_query_len,
                max_seqlen_k=self.longest,
                num_heads_q=query.shape[1],
                num_heads_kv=cache.shape[1],
                headdim=query.shape[2],
                cache_seqlens=self.key_lens,
                qkv_dtype=query.dtype,
                cu_seqlens_q=self.batch.query_start_loc,
                page_size=BLOCK_SIZE,
                causal=self.causal,
                num_splits=SPLITS,
            )
        return self.schedules


def _tree_attention_on_flash(context: Flash, query: Tensor, cache: Tensor, out: Tensor) -> object:
    from redrafter_vllm.ops.tree_attention.kernel import attend_nodes

    part, log_sum = context(query, cache)
    return attend_nodes(query, cache, context.batch, part[None], log_sum[None], context.scale, out=out)


def _beam_step(logits: Tensor, scores: Tensor) -> object:
    from redrafter_vllm.ops.beam_step import beam_step

    return beam_step(logits, scores)


def _prefix_tree(beams: tuple[Tensor, Tensor, Tensor], nodes: int) -> object:
    from redrafter_vllm.ops.prefix_tree import prefix_tree

    return prefix_tree(*beams, nodes)
