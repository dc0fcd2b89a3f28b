# SPDX-License-Identifier: Apache-2.0
"""Full CUDA graphs: metadata of a capture is valid for every later step of that shape.

On a GPU a graph of the forward pass is captured and replayed. Elsewhere the forward pass runs again on the capture's
metadata, as a replay does: the same tensors, the same launch sizes. Between two runs the builder prepares another
step, in vLLM's persistent input buffers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.integration.attention.backend_steps import (
    common_metadata,
    dense_attention,
    forward,
    layer_scales,
    make_builder,
    make_impl,
    step_trees,
)
from tests.integration.attention.fake_flash import flash_attention
from tests.no_sync import forbid_host_sync
from tests.ops.attention_steps import Request, Step
from tests.ops.devices import DEVICE, HAS_GPU, runs_kernels

pytestmark = runs_kernels

NUM_REQS, QUERY_LEN = 4, 6
# Five drafts each; requests without a query pad the batch to the graph's size.
STEPS: list[list[Request | None]] = [
    [(37, 0, 5), (64, 0, 5), (5, 0, 5), None],
    [(130, 0, 5), None, None, None],
    [(0, 0, 5), (15, 0, 5), (16, 0, 5), (17, 0, 5)],
]
# For a graph of any lengths up to QUERY_LEN, of 12 tokens in all.
MIXED_STEPS: list[list[Request | None]] = [
    [(37, 0, 5), (64, 0, 0), (5, 0, 2), None],
    [(130, 0, 0), (3, 0, 0), (9, 0, 0), (12, 0, 0)],
    [(0, 0, 5), (31, 0, 4), None, None],
    [(16, 0, 1), (0, 0, 3), (17, 0, 0), (129, 0, 4)],
]


class InputBuffers:
    """The runner's persistent tensors and the cache; `step` is a view of them as one step."""

    def __init__(self, like: Step, drafts: tuple[int, ...] = (5, 5, 5, 5)) -> None:
        self.query_start_loc = torch.zeros(NUM_REQS + 1, dtype=torch.int32, device=DEVICE)
        self.seq_lens = torch.zeros(NUM_REQS, dtype=torch.int32, device=DEVICE)
        self.block_table = torch.zeros(NUM_REQS, 16, dtype=torch.int32, device=DEVICE)
        self.num_tokens = len(drafts) + sum(drafts)
        self.step = Step([(0, 0, each) for each in drafts], like.heads, like.query.shape[2], like.query.dtype)
        self.step.query = self.step.query[: self.num_tokens].clone()
        self.step.cache = self.step.cache.new_zeros(64, *like.cache.shape[1:])
        self.out = torch.empty_like(self.step.query)

    def load(self, step: Step) -> Any:
        """Write this step; tokens beyond the requests' pad it to the graph's size."""
        common, table = common_metadata(step), step.batch.block_table
        self.query_start_loc.copy_(common.query_start_loc)
        self.seq_lens.copy_(common.seq_lens)
        self.block_table.zero_()
        self.block_table[:, : table.shape[1]] = table.where(table < 2**30, 0)
        self.step.query[: step.starts[-1]] = step.query[: step.starts[-1]]
        self.step.cache[: len(step.cache)] = step.cache.nan_to_num()
        self.out.fill_(-777)
        return self._persistent(common)

    def dummy(self, max_query_len: int = QUERY_LEN) -> Any:
        """vLLM's input of a capture: queries only, without drafts."""
        common = self._persistent(common_metadata(self.step))
        self.query_start_loc.copy_(common.query_start_loc_cpu)
        self.seq_lens.copy_(common.query_start_loc_cpu.diff())
        self.block_table.zero_()
        return common.replace(seq_lens_cpu_upper_bound=None, max_seq_len=512, max_query_len=max_query_len)

    def _persistent(self, common: Any) -> Any:
        return common.replace(
            query_start_loc=self.query_start_loc,
            seq_lens=self.seq_lens,
            block_table_tensor=self.block_table,
            num_actual_tokens=self.num_tokens,
        )


def backend(name: str, step: Step) -> tuple[Any, Any]:
    return make_builder(name, step, full_graphs=True), make_impl(name, step)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """A graph of `run` on a GPU, after vLLM's kind of warm-up; else `run`."""
    run()
    if not HAS_GPU:
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@pytest.mark.parametrize(("name", "capability"), [("flash", (8, 0)), ("flash", (9, 0)), ("triton", (8, 0))])
def test_metadata_of_a_capture_serves_later_steps(
    name: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flash_attention(monkeypatch, capability)
    steps = [Step(requests, (4, 2), 64, torch.float16) for requests in STEPS]
    buffers, layer = InputBuffers(steps[0]), layer_scales()
    make, attention = backend(name, steps[0])
    of_capture = make.build_for_cudagraph_capture(buffers.dummy())
    assert of_capture.num_tree_tokens == NUM_REQS * QUERY_LEN and of_capture.causal is None
    replay = captured(lambda: forward(attention, buffers.step, of_capture, layer, buffers.out))
    for step in steps:
        common = buffers.load(step)
        trees = step_trees(step, len([r for r in step.requests if r is not None]))
        with forbid_host_sync():
            built = make.build(0, common, trees=trees)
        assert built.trees.seq_lens.shape == of_capture.trees.seq_lens.shape
        replay()
        rows = slice(0, step.starts[-1])
        torch.testing.assert_close(buffers.out[rows].float(), dense_attention(step, layer)[rows], atol=4e-3, rtol=4e-3)
        assert (buffers.out[step.starts[-1] :] == -777).all()
    again = make.build_for_cudagraph_capture(buffers.dummy())
    assert (again.trees.num_drafts == 0).all(), "a dummy run would verify an earlier step's trees"


@pytest.mark.parametrize(("name", "capability"), [("flash", (8, 0)), ("flash", (9, 0)), ("triton", (8, 0))])
def test_one_capture_serves_queries_of_any_length(
    name: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps with drafts for some requests, or for none, of which the host knows only the sum of the lengths."""
    flash_attention(monkeypatch, capability)
    steps = [Step(requests, (4, 2), 64, torch.float16) for requests in MIXED_STEPS]
    buffers, layer = InputBuffers(steps[0], (2, 2, 2, 2)), layer_scales()
    make, attention = backend(name, steps[0])
    make.has_graphs_of_any_length = True
    of_capture = make.build_for_cudagraph_capture(buffers.dummy(make.decode_query_len))
    assert of_capture.trees.max_query_len == make.decode_query_len and of_capture.causal is None
    replay = captured(lambda: forward(attention, buffers.step, of_capture, layer, buffers.out))
    for step in [*steps, steps[0]]:
        common, num_reqs = buffers.load(step), len([r for r in step.requests if r is not None])
        even = torch.arange(NUM_REQS + 1).clamp(max=num_reqs) * step.starts[-1] // num_reqs
        longest = 1 + max(map(len, step.parents))
        common = common.replace(query_start_loc_cpu=even.int(), max_query_len=longest)
        trees = None
        if longest > 1:
            trees = step_trees(step, num_reqs)
            missing = make.decode_query_len - 1 - trees.ancestors.shape[1]
            trees = replace(trees, ancestors=torch.nn.functional.pad(trees.ancestors, (0, missing, 0, missing)))
        with forbid_host_sync():
            built = make.build(0, common, trees=trees)
        assert built.causal is None and built.trees.num_drafts.data_ptr() == of_capture.trees.num_drafts.data_ptr()
        replay()
        rows = slice(0, step.starts[-1])
        torch.testing.assert_close(buffers.out[rows].float(), dense_attention(step, layer)[rows], atol=4e-3, rtol=4e-3)
        assert (buffers.out[step.starts[-1] :] == -777).all()


@pytest.mark.parametrize("name", ["flash", "triton"])
def test_graphs_of_single_tokens_are_vllms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attention(monkeypatch, (8, 0))
    step = Step([(9, 0, 0), (3, 0, 0)], (2, 2), 64, torch.float16)
    make, _ = backend(name, step)
    metadata = make.build_for_cudagraph_capture(common_metadata(step))
    assert metadata.trees is None and metadata.num_tree_tokens == 0 and metadata.causal is not None


@pytest.mark.parametrize("name", ["flash", "triton"])
def test_vllm_is_told_which_batches_a_graph_can_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backend import AttentionCGSupport

    flash_attention(monkeypatch, (9, 0))
    step = Step([(9, 0, 2)], (2, 2), 64, torch.float16)
    make, _ = backend(name, step)
    spec = make.vllm_config, make.kv_cache_spec
    assert make.get_cudagraph_support(*spec) == AttentionCGSupport.UNIFORM_BATCH
    assert make.get_varlen_cudagraph_max_query_len(*spec) == make.decode_query_len
