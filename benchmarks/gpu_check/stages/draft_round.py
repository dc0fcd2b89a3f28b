# SPDX-License-Identifier: Apache-2.0
"""Time of a drafting round for Vicuna-7B, from a CUDA graph, against the time for reading its bytes.

The round is recorded as in serving: trees are proposed from the buffers of a round and stored in the requests' rows. It
is measured for the drafter as stored and in its fastest format: INT8 with vLLM's kernels, W·E as a table.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.timing import bandwidth, seconds
from benchmarks.models.roofline import Layout, Workload, round_reads
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.buffers import DraftRows, RoundBuffers
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.predict.shapes import find_shape, published_drafter

MAX_RATIO = 1.3  # of a round's time to its byte floor, at batch 1
SHAPE = {"cuda": "vicuna-7b", "cpu": "llama-0.1b"}
DRAFT_TOKENS = 8000
BATCHES = {"cuda": (1, 4, 16), "cpu": (1,)}
DRAFTINGS = (DraftingConfig(beam_width=4, beam_length=4), DraftingConfig(beam_width=4, beam_length=5))
AS_STORED, FASTEST = "bfloat16", "int8, W·E as a table"
LAYOUTS = {AS_STORED: Layout(), FASTEST: Layout(byte_weights=True, project_embedding=True)}


@dataclass(frozen=True)
class Row:
    """Seconds of a round, and of reading its bytes (`floor`)."""

    drafter: str
    beam_length: int
    batch: int
    seconds: float
    floor: float

    def __str__(self) -> str:
        where = f"{self.drafter}, beams of {self.beam_length}, batch {self.batch}"
        return f"{where}: {1e3 * self.seconds:.3f} ms, {self.seconds / self.floor:.2f} of its floor"


def run(call: Call) -> Outcome:
    """Weights are random: the time of a round does not depend on them."""
    shape, speed = find_shape(SHAPE[call.device]), bandwidth(call)
    config = published_drafter(shape, draft_vocab_size=DRAFT_TOKENS)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for name in LAYOUTS:
        try:
            for row in measured(name, config, call.device, speed):
                rows.append(row)
                call.keep(figures(rows, failed))
        except Exception as error:  # for example a kernel that is missing in this build: the other drafter is measured
            failed[name] = f"{type(error).__name__}: {error}"
            call.keep(figures(rows, failed))
    slow = [row for row in rows if row.batch == 1 and row.seconds > MAX_RATIO * row.floor]
    lines = [*map(str, rows), *(f"{name} FAILED: {reason}" for name, reason in failed.items())]
    return Outcome(not slow and not failed, "\n".join(lines), figures(rows, failed))


def figures(rows: list[Row], failed: dict[str, str]) -> dict[str, Any]:
    return {"rounds": [asdict(row) for row in rows], "failed": failed}


@torch.inference_mode()
def measured(name: str, config: DrafterConfig, device: str, speed: float) -> Iterator[Row]:
    """Rows of one drafter; `speed` is the bandwidth in bytes per second."""
    torch.manual_seed(0)
    with packed(name, config, device) as drafter:
        embedding = torch.randn(config.vocab_size, config.hidden_size, dtype=torch.bfloat16, device=device)
        inputs = drafter.token_inputs(embedding)
        for drafting in DRAFTINGS:
            for batch in BATCHES[device]:
                kept = DraftRows(batch, drafting.num_speculative_tokens, torch.device(device))
                took = seconds([round_of(drafter, inputs, drafting, kept)], device)
                work = Workload(drafting, batch, bandwidth=speed)
                yield Row(
                    name, drafting.beam_length, batch, took, round_reads(config, work, LAYOUTS[name]).total / speed
                )


@contextmanager
def packed(name: str, config: DrafterConfig, device: str) -> Iterator[PackedDrafter]:
    """A random drafter in the format that serving keeps it in."""
    with torch.device(device):
        drafter = Drafter(config).to(torch.bfloat16).eval()
    if name == AS_STORED:
        yield PackedDrafter(drafter)
        return
    # Only INT8 needs a current vLLM configuration, so only this drafter fails where there can be none.
    from benchmarks.serving.drafting_round import alone_in_vllm
    from redrafter_vllm.integration.worker.drafter_loading import linear_maker

    with alone_in_vllm(device, torch.bfloat16):
        yield PackedDrafter(drafter, linear_maker("int8"), project_embedding=True)


def round_of(
    drafter: PackedDrafter,
    inputs: Tensor | Callable[[Tensor], Tensor],
    drafting: DraftingConfig,
    kept: DraftRows,
) -> Callable[[], None]:
    """The round that `RedrafterSpeculator._run_round` records, for all requests that `kept` has rows for."""
    batch, nodes, device = kept.padding_row, drafting.num_speculative_tokens, kept.num_nodes.device
    buffers = RoundBuffers(batch, nodes, drafter.config.hidden_size, torch.bfloat16, device)
    this = buffers.first(batch)
    this.context.normal_()
    this.roots.copy_(torch.arange(batch))
    this.rows.copy_(torch.arange(batch))
    this.node_budget.fill_(nodes)
    this.beam_limit.fill_(drafting.beam_width)

    def draw() -> None:
        tree = propose_trees(drafter, inputs, this.context, this.roots, this.beam_limit, drafting)
        kept.write(this.rows, tree, this.node_budget, buffers.draft_tokens[:batch])

    return draw
