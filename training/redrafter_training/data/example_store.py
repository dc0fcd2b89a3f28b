# SPDX-License-Identifier: Apache-2.0
"""The examples of a run in one Parquet file, from which every worker and every restart reads them in the same order."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
import pyarrow.parquet as parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]
import torch

from redrafter_training.data.report import DataReport, Reason, Skipped
from redrafter_training.data.splits import Content
from redrafter_training.data.tokenize import Example
from redrafter_vllm.utils.atomic import atomic_file

SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("loss", pa.list_(pa.bool_())),
        ("cut", pa.int32()),
        ("group", pa.int64()),
        ("keys", pa.list_(pa.int64())),  # of all exchanges, one after the other; each exchange has the same number
        ("ends", pa.list_(pa.int32())),
        ("asked", pa.int32()),
    ]
)
REPORT = "data_report"


def write_store(path: Path, fill: Callable[[Callable[[pa.Table], None]], DataReport]) -> None:
    """Writes `path` atomically.

    Args:
        fill: calls its argument with tables of `SCHEMA`, and returns the report on the records, which is stored too.
    """
    with atomic_file(path) as temporary, parquet.ParquetWriter(temporary, SCHEMA) as writer:
        report = fill(writer.write_table)
        writer.add_key_value_metadata({REPORT: json.dumps(asdict(report))})


def read_store(path: Path) -> tuple[list[Example], DataReport]:
    """All examples in order, and the report on the records that they come from."""
    file = parquet.ParquetFile(path)
    report = json.loads(file.metadata.metadata[REPORT.encode()])
    report["counts"] = {Reason(reason): count for reason, count in report["counts"].items()}
    report["examples"] = {
        Reason(reason): [Skipped(**skipped) for skipped in examples] for reason, examples in report["examples"].items()
    }
    examples = [example for batch in file.iter_batches() for example in _examples(batch)]
    return examples, DataReport(**report)


def _examples(batch: pa.RecordBatch) -> list[Example]:
    tokens, loss = batch.column("tokens"), batch.column("loss")
    ends = tokens.value_lengths().to_numpy().cumsum().tolist()
    # Copied, since torch needs writable memory.
    all_tokens = torch.from_numpy(tokens.flatten().to_numpy().copy())
    all_loss = torch.from_numpy(loss.flatten().to_numpy(zero_copy_only=False).copy())
    made = []
    columns = (batch.column(name).to_pylist() for name in ("where", "cut", "asked", "group", "keys", "ends"))
    for where, cut, prompt, group, keys, exchange_ends, first, last in zip(*columns, [0, *ends], ends, strict=False):
        size = len(keys) // len(exchange_ends)
        content = Content(group, tuple(tuple(keys[place : place + size]) for place in range(0, len(keys), size)))
        tokens, loss = all_tokens[first:last], all_loss[first:last]
        made.append(Example(where, tokens, loss, cut, content, tuple(exchange_ends), prompt))
    return made


def content_columns(example: Example) -> dict[str, object]:
    """The columns for an example's content."""
    assert example.content is not None
    keys = [key for exchange in example.content.exchanges for key in exchange]
    return {"group": example.content.group, "keys": keys, "ends": list(example.ends)}
