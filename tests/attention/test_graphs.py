# SPDX-License-Identifier: Apache-2.0
"""Full CUDA graphs, as far as a CPU can show them: metadata of a capture serves every later step of that shape.

A graph runs again what ran at its capture: the same tensors, the same launch sizes. Here the forward pass runs again on
the capture's metadata after the builder has prepared another step, in the input buffers that vLLM keeps.
"""

from typing import Any

import pytest
import torch

from tests.attention.backend_steps import common_metadata, dense_attention, forward, layer_scales, step_trees
from tests.attention.fake_flash import FakeFlash
from tests.no_sync import forbid_host_sync
from tests.ops.attention_steps import Request, Step
from tests.ops.devices import HAS_GPU, runs_kernels

pytestmark = [runs_kernels, pytest.mark.skipif(HAS_GPU, reason="builds its steps on the CPU")]

QUERY_LEN = 6
# Five drafts each; requests without a query pad the batch to the graph's size.
STEPS: list[list[Request | None]] = [
    [(37, 0, 5), (64, 0, 5), (5, 0, 5), None],
    [(130, 0, 5), None, None, None],
    [(0, 0, 5), (15, 0, 5), (16, 0, 5), (17, 0, 5)],
]


class InputBuffers:
    """The runner's persistent tensors, written before each step."""

    def __init__(self, num_reqs: int, pages: int) -> None:
        self.query_start_loc = torch.zeros(num_reqs + 1, dtype=torch.int32)
        self.seq_lens = torch.zeros(num_reqs, dtype=torch.int32)
        self.block_table = torch.zeros(num_reqs, pages, dtype=torch.int32)

    def common(self, step: Step) -> Any:
        """This step, in the persistent tensors; tokens beyond the requests' pad it to the graph's size."""
        common, table = common_metadata(step), step.batch.block_table
        self.query_start_loc.copy_(common.query_start_loc)
        self.seq_lens.copy_(common.seq_lens)
        self.block_table.zero_()
        self.block_table[:, : table.shape[1]] = table.where(table < 2**30, 0)
        return common.replace(
            query_start_loc=self.query_start_loc,
            seq_lens=self.seq_lens,
            block_table_tensor=self.block_table,
            num_actual_tokens=common.num_reqs * QUERY_LEN,
        )

    def dummy(self, common: Any) -> Any:
        """What vLLM captures with: nothing but queries, and no drafts among them."""
        self.seq_lens.fill_(QUERY_LEN)
        self.query_start_loc.copy_(torch.arange(len(self.query_start_loc)) * QUERY_LEN)
        self.block_table.zero_()
        starts = self.query_start_loc.clone()
        return common.replace(query_start_loc_cpu=starts, seq_lens_cpu_upper_bound=None, max_seq_len=512)


def backend(name: str, step: Step) -> tuple[Any, Any]:
    if name == "flash":
        from tests.attention.test_flash import builder, impl
    else:
        from tests.attention.test_triton import builder, impl
    return builder(step, full_graphs=True), impl(step)


def padded(step: Step) -> Step:
    """The step with a query as long as the graph's."""
    query = torch.full((len(step.requests) * QUERY_LEN, *step.query.shape[1:]), 0.5, dtype=step.query.dtype)
    query[: len(step.query) - 2] = step.query[:-2]
    step.query = query
    return step


@pytest.mark.parametrize(("name", "capability"), [("flash", (8, 0)), ("flash", (9, 0)), ("triton", None)])
def test_metadata_of_a_capture_serves_later_steps(
    name: str, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capability is not None:
        FakeFlash(monkeypatch, capability)
    steps = [padded(Step(requests, (4, 2), 64, torch.float16)) for requests in STEPS]
    buffers, layer = InputBuffers(4, 16), layer_scales()
    make, attention = backend(name, steps[0])
    captured = make.build_for_cudagraph_capture(buffers.dummy(buffers.common(steps[0])))
    assert captured.num_tree_tokens == 4 * QUERY_LEN and captured.causal is None
    for step in steps:
        num_reqs = len([r for r in step.requests if r is not None])
        common, trees = buffers.common(step), step_trees(step, num_reqs)
        with forbid_host_sync():
            built = make.build(0, common, trees=trees)
        assert built.trees.seq_lens.shape == captured.trees.seq_lens.shape
        out = forward(attention, step, captured, layer)
        rows = slice(0, step.starts[-1])
        expected = dense_attention(step, layer)
        torch.testing.assert_close(out[rows].float(), expected[rows], atol=4e-3, rtol=4e-3)
        assert (out[step.starts[-1] :] == -777).all()
    again = make.build_for_cudagraph_capture(buffers.dummy(buffers.common(steps[0])))
    assert (again.trees.num_drafts == 0).all(), "a dummy run verifies an earlier step's trees"


@pytest.mark.parametrize("name", ["flash", "triton"])
def test_single_tokens_are_captured_as_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeFlash(monkeypatch, (8, 0))
    step = Step([(9, 0, 0), (3, 0, 0)], (2, 2), 64, torch.float16)
    make, _ = backend(name, step)
    captured = make.build_for_cudagraph_capture(common_metadata(step))
    assert captured.trees is None and captured.num_tree_tokens == 0 and captured.causal is not None


@pytest.mark.parametrize("name", ["flash", "triton"])
def test_uniform_batches_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backend import AttentionCGSupport

    FakeFlash(monkeypatch, (9, 0))
    step = Step([(9, 0, 2)], (2, 2), 64, torch.float16)
    make, _ = backend(name, step)
    assert make.get_cudagraph_support(make.vllm_config, make.kv_cache_spec) == AttentionCGSupport.UNIFORM_BATCH
