# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that are mostly zero, written without holding them in memory.

Only the rows that are not all zero are written; the rest is a hole in the file, which reads as zeros and, on most file
systems, occupies no space on the disk.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from benchmarks.models.inflate.placement import Piece
from benchmarks.models.inflate.source import INDEX_FILE, WEIGHTS_FILE
from redrafter_vllm.predict.shapes import TensorShapes

# Without float16, whose range is too small for the suppression of padded tokens and for most models' activations.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Contents:
    """Contents of a folder's files: shapes, types, and a function that makes a tensor when it is written."""

    shapes: TensorShapes
    dtypes: Mapping[str, torch.dtype]
    piece: Callable[[str], Piece]

    def num_bytes(self, name: str) -> int:
        return prod(self.shapes[name]) * self.dtypes[name].itemsize

    @property
    def total_bytes(self) -> int:
        return sum(map(self.num_bytes, self.shapes))

    def shards(self, max_bytes: int) -> list[list[str]]:
        """Names in order, in groups of at most `max_bytes`; a larger tensor is a group by itself."""
        groups: list[list[str]] = []
        free = 0
        for name in self.shapes:
            size = self.num_bytes(name)
            if not groups or size > free:
                groups.append([])
                free = max_bytes
            groups[-1].append(name)
            free -= size
        return groups


def write_folder(folder: Path, contents: Contents, shard_bytes: int, progress: Callable[[int], object]) -> None:
    """Write one file, or shards and their index; calls `progress` with the bytes of each tensor."""
    shards = contents.shards(shard_bytes)
    files = [WEIGHTS_FILE]
    if len(shards) > 1:
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": contents.total_bytes},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, contents, names, progress)


def _write_shard(file: Path, contents: Contents, names: list[str], progress: Callable[[int], object]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets = [0]
    for name in names:
        offsets.append(offsets[-1] + contents.num_bytes(name))
        header[name] = {
            "dtype": _STORED[contents.dtypes[name]],
            "shape": list(contents.shapes[name]),
            "data_offsets": offsets[-2:],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns tensors to eight bytes
    with file.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        start = out.tell()
        out.truncate(start + offsets[-1])
        for name, offset in zip(names, offsets, strict=False):
            _write_piece(out, start + offset, contents.piece(name), contents.shapes[name], contents.dtypes[name])
            progress(contents.num_bytes(name))


def _write_piece(out: BinaryIO, start: int, piece: Piece, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert piece.shape == shape, f"{list(piece.shape)} instead of {list(shape)}"
    row_bytes = prod(shape[1:]) * dtype.itemsize
    block = max(1, _BLOCK_BYTES // row_bytes)
    for first in range(0, len(piece.rows), block):
        rows = piece.rows[first : first + block]
        dense = piece.dense_rows(first, first + block).to(dtype)
        for begin, end in pairwise(_run_borders(rows)):
            out.seek(start + int(rows[begin]) * row_bytes)
            out.write(dense[begin:end].contiguous().view(torch.uint8).numpy().data)


def _run_borders(rows: Tensor) -> list[int]:
    """Starts of runs of consecutive numbers, and the end: 4 5 6 9 -> 0 3 4."""
    breaks = (rows.diff() != 1).nonzero().flatten() + 1
    return [0, *breaks.tolist(), len(rows)]
