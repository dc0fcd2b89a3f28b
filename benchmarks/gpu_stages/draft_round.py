# SPDX-License-Identifier: Apache-2.0
"""A drafting round for Vicuna-7B, from a CUDA graph, beside the time that its bytes need."""

from pathlib import Path

import torch

from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.timing import bandwidth, seconds
from benchmarks.roofline import Layout, Workload, round_reads
from benchmarks.shapes import find_shape, published_drafter
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafter import Drafter
from redrafter_vllm.packed_drafter import PackedDrafter
from redrafter_vllm.speculator import draw_trees

SLOWER = 1.3  # times its byte floor
DRAFT_TOKENS = 8000
BATCHES = (1, 4, 16)


def run(device: str, scratch: Path) -> Outcome:
    """Four beams of five; random weights draft as slowly as trained ones."""
    shape = find_shape("vicuna-7b" if device == "cuda" else "llama-0.1b")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    config = published_drafter(shape, draft_vocab_size=DRAFT_TOKENS)
    with torch.device(device):
        drafter = PackedDrafter(Drafter(config).to(dtype).eval())
        embedding = torch.randn(shape.vocab_size, shape.hidden_size, dtype=dtype)
    drafting, speed = DraftingConfig(beam_width=4, beam_length=5), bandwidth(device, scratch)
    times, floors = {}, {}
    for batch in BATCHES:
        with torch.device(device):
            context = torch.randn(batch, shape.hidden_size, dtype=dtype)
            roots, beams = torch.arange(batch), torch.full((batch,), drafting.beam_width)

        def draw(context: torch.Tensor = context, roots: torch.Tensor = roots, beams: torch.Tensor = beams) -> object:
            return draw_trees(drafter, embedding, context, roots, beams, drafting)

        with torch.inference_mode():
            times[batch] = seconds(draw, device)
        work = Workload(drafting, batch, dtype=str(dtype).removeprefix("torch."), bandwidth=speed)
        floors[batch] = round_reads(config, work, Layout()).total / speed
    listed = ", ".join(
        f"batch {batch}: {1e3 * times[batch]:.3f} ms, floor {1e3 * floors[batch]:.3f}" for batch in BATCHES
    )
    return Outcome(times[1] <= SLOWER * floors[1], listed, {"seconds": times, "floor": floors})
