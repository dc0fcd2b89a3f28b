# SPDX-License-Identifier: Apache-2.0
"""Predicted against published figures, series by series; `published.json` has these with their sources."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models.prediction.eagle import eagle_round
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.gpu import Gpu, known_gpus
from redrafter_vllm.predict.shapes import LlamaShape, find_shape, published_drafter
from redrafter_vllm.predict.work import Work, cache_bytes, drafting_round, seconds, target_step
from redrafter_vllm.utils import strict_json

PUBLISHED = Path(__file__).with_name("published.json")
# What the reference implementation moves beside the model's own work, as its code shows: `repeat_interleave` copies
# keys and values in every layer, even with one head a group, and unpacking the beams gathers, clones and writes them.
EXTRA_CACHE_PASSES = 2
UNPACKING_PASSES = 6
MAX_NODES = 128


@dataclass(frozen=True)
class Comparison:
    """One published figure."""

    table: str
    series: str
    case: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of the published figure."""
        return self.predicted / self.published - 1


def published() -> dict[str, Any]:
    """The published figures, with their sources."""
    found: dict[str, Any] = strict_json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return found


def comparisons() -> list[Comparison]:
    """All of them, in the order of `published.json`."""
    figures = published()
    return [
        *by_drafts(figures["vllm_eagle_by_drafts"]),
        *by_batch(figures["vllm_eagle_by_batch"]),
        *paper(figures["paper_by_batch"]),
    ]


def by_drafts(figures: dict[str, Any]) -> Iterator[Comparison]:
    """Milliseconds per token of vLLM, plain and with EAGLE's chains, batch 1."""
    gpu, shape = known_gpus()[figures["gpu"]], find_shape(figures["target"])
    context, table = figures["context"], "vLLM, Llama-3.1-8B, H100, batch 1: milliseconds per token by drafts"
    plain = 1e3 * _vllm_step(gpu, shape, 0, 1, context)
    yield Comparison(table, "plain", "0", plain, figures["plain_ms_per_token"])
    for name, method in figures["methods"].items():
        rows = zip(figures["drafts"], method["tokens_per_step"], method["ms_per_token"], strict=True)
        for drafts, tokens, milliseconds in rows:
            step = 1e3 * _vllm_step(gpu, shape, drafts, 1, context, is_eagle3=name == "EAGLE-3")
            yield Comparison(table, name, str(drafts), step / tokens, milliseconds)


def by_batch(figures: dict[str, Any]) -> Iterator[Comparison]:
    """Speed-up of EAGLE in vLLM by batch; without published tokens per step relative to that at batch 1."""
    gpu, drafts = known_gpus()[figures["gpu"]], figures["drafts"]
    table = f"vLLM, EAGLE with {drafts} drafts, H100: speed-up by batch"
    for series in figures["series"]:
        shape, context, gpus = find_shape(series["target"]), series["context"], series["gpus"]
        per_token = [
            _vllm_step(gpu, shape, 0, batch, context, gpus) / _vllm_step(gpu, shape, drafts, batch, context, gpus)
            for batch in figures["batch"]
        ]
        name = f"{series['target']} on {gpus}, {series['data']}"
        tokens, speedups = series["tokens_per_step"], series["speedup"]
        if tokens is None:
            name += ", over batch 1"
            tokens, speedups = 1 / per_token[0], [speedup / speedups[0] for speedup in speedups]
        for batch, ratio, speedup in zip(figures["batch"], per_token, speedups, strict=True):
            if series["tokens_per_step"] is not None or batch > 1:
                yield Comparison(table, name, str(batch), tokens * ratio, speedup)


def paper(figures: dict[str, Any]) -> Iterator[Comparison]:
    """Speed of a request over that at batch 1, ReDrafter in PyTorch.

    Launched kernel by kernel from Python, a step takes 38 ms at batch 1, several times what its work takes the GPU.
    That step is taken as given; what larger batches add is predicted.
    """
    gpu, shape = known_gpus()[figures["gpu"]], find_shape(figures["target"])
    base = 1e-3 * figures["step_at_batch_1_ms"]
    table = "ReDrafter in PyTorch, Vicuna-7B, H100: speed of a request over that at batch 1, by batch"
    for beams, speeds in figures["tokens_per_second"].items():
        width = int(beams)
        alone = _torch_step(gpu, shape, width, 1, figures)
        for batch, speed in zip(figures["batch"][1:], speeds[1:], strict=False):  # some ran out of memory
            step = base + _torch_step(gpu, shape, width, batch, figures) - alone
            name = f"{beams} {'beam' if width == 1 else 'beams'}"
            yield Comparison(table, name, str(batch), base / step, speed / speeds[0])


def _vllm_step(
    gpu: Gpu, shape: LlamaShape, drafts: int, batch: int, context: int, gpus: int = 1, *, is_eagle3: bool = False
) -> float:
    work = target_step(shape, batch * (1 + drafts), batch, context, gpus)
    if drafts:
        work += eagle_round(shape, drafts, batch, context, gpus, is_eagle3=is_eagle3)
    return seconds(work, gpu, gpus) + 1e-3 * gpu.step_ms


def _torch_step(gpu: Gpu, shape: LlamaShape, width: int, batch: int, figures: dict[str, Any]) -> float:
    """Without what does not depend on the batch."""
    tokens, context = figures["beam_tokens"], figures["context"]  # a beam's tokens count the root
    kept = figures["kept_by_deduplication"] if width > 1 else 1.0
    rows = batch * round(kept * width * tokens)
    length = tokens - 1
    drafting = DraftingConfig(width, length, min(MAX_NODES, width * length))
    copied = EXTRA_CACHE_PASSES * context + UNPACKING_PASSES * width * tokens
    work = (
        target_step(shape, rows, batch, context)
        + drafting_round(published_drafter(shape), drafting, batch)
        + Work(bytes=batch * copied * cache_bytes(shape))
    )
    return seconds(work, gpu)
