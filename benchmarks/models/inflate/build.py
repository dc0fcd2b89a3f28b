# SPDX-License-Identifier: Apache-2.0
"""The folder of an inflated target, with its drafter inside."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.models.inflate.drafter import InflatedDrafter
from benchmarks.models.inflate.source import SmallLlama
from benchmarks.models.inflate.target import InflatedTarget
from benchmarks.models.inflate.writer import DTYPES, Contents, write_folder
from redrafter_vllm.checkpoint.vocab_mapping import MAP
from redrafter_vllm.predict.shapes import CONFIG_FILE, LlamaShape, ShapeError, as_dict
from redrafter_vllm.utils.atomic import atomic_folder

RECORD_FILE = "inflation.json"
DRAFTER_FOLDER = "redrafter"  # where serving looks for a target's drafter
# Other files that a target's folder may hold.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Options:
    """Options of one inflation. Raises ShapeError where they are impossible."""

    model: Path
    shape: LlamaShape
    out: Path
    drafter: Path | None = None
    dtype: str = "bfloat16"
    shard_bytes: int = 5 * 10**9
    exit_dim: int | None = None
    num_draft_layers: int | None = None
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ShapeError(f"There is no dtype {self.dtype!r} here: give {' or '.join(DTYPES)}.")
        if self.shard_bytes < 1:
            raise ShapeError(f"A shard of {self.shard_bytes} bytes holds nothing.")
        sizes = (self.exit_dim, self.num_draft_layers, self.draft_vocab_size)
        if self.drafter is None and any(sizes):
            raise ShapeError("Sizes of a drafter are given, but no drafter: add --drafter.")


class Inflation:
    """A checked plan of one inflation; writes nothing before `write`. Raises ShapeError or a `CheckpointError`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.target = InflatedTarget(SmallLlama(options.model), options.shape)
        self.drafter: InflatedDrafter | None = None
        if options.drafter is not None:
            self.drafter = InflatedDrafter(
                options.drafter,
                self.target,
                exit_dim=options.exit_dim,
                num_draft_layers=options.num_draft_layers,
                draft_vocab_size=options.draft_vocab_size,
            )

    @property
    def target_contents(self) -> Contents:
        shapes = self.options.shape.tensors
        return Contents(shapes, dict.fromkeys(shapes, DTYPES[self.options.dtype]), self.target.piece)

    @property
    def drafter_contents(self) -> Contents | None:
        if self.drafter is None:
            return None
        shapes = self.drafter.tensors
        dtype = DTYPES[self.options.dtype]
        dtypes = {name: torch.int64 if name == MAP else dtype for name in shapes}
        return Contents(shapes, dtypes, self.drafter.piece)

    @property
    def total_bytes(self) -> int:
        drafter = self.drafter_contents
        return self.target_contents.total_bytes + (0 if drafter is None else drafter.total_bytes)

    def write(self) -> None:
        """Write the folder atomically. Raises ShapeError if it exists."""
        with _new_folder(self.options.out) as folder, _progress(self.total_bytes, self.options.out) as bar:
            write_folder(folder, self.target_contents, self.options.shard_bytes, bar.update)
            _write_json(folder / CONFIG_FILE, self._target_config())
            _write_json(folder / RECORD_FILE, self._record())
            for name in COMPANIONS:
                if (self.options.model / name).is_file():
                    shutil.copyfile(self.options.model / name, folder / name)
            if self.drafter is not None:
                (folder / DRAFTER_FOLDER).mkdir()
                self._write_drafter(folder / DRAFTER_FOLDER, bar)

    def write_drafter(self, out: Path) -> None:
        """Write a folder of the drafter alone atomically. Raises ShapeError if it exists."""
        contents = self.drafter_contents
        if contents is None:
            raise ShapeError("There is no drafter to write: give one.")
        with _new_folder(out) as folder, _progress(contents.total_bytes, out) as bar:
            self._write_drafter(folder, bar)

    def _write_drafter(self, folder: Path, bar: tqdm) -> None:
        contents = self.drafter_contents
        assert self.drafter is not None and contents is not None
        write_folder(folder, contents, self.options.shard_bytes, bar.update)
        _write_json(folder / CONFIG_FILE, self.drafter.described(self.options.dtype))

    def _target_config(self) -> dict[str, Any]:
        config = self.target.config | {"dtype": self.options.dtype}
        return {key: value for key, value in config.items() if key != "torch_dtype"}

    def _record(self) -> dict[str, Any]:
        """How the target was made, for reports."""
        return {
            "construction": "function-preserving inflation: zeros around a small model (benchmarks/models/inflate)",
            "model": self.options.model.resolve().name,
            "model_shape": as_dict(self.target.small.shape),
            "shape": as_dict(self.options.shape),
            "drafter": None if self.drafter is None else as_dict(self.drafter.config),
            "drafter_source": None if self.drafter is None else as_dict(self.drafter.small),
            "dtype": self.options.dtype,
        }


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends. Raises ShapeError where `out` is not new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShapeError(f"{out} exists: give a new folder.")
    with atomic_folder(out) as folder:
        yield folder


def _progress(size: int, out: Path) -> tqdm:
    return tqdm(total=size, unit="B", unit_scale=True, desc=str(out), disable=None)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def allocated_bytes(folder: Path) -> int:
    """Bytes that a folder's files occupy on the disk, without holes; on Windows their sizes."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(stat.st_blocks * 512 if sys.platform != "win32" else stat.st_size for stat in stats)
