# SPDX-License-Identifier: Apache-2.0
"""A data set cut into pieces that processes read independently; together they hold its records in order.

Ray Data's own readers are not used: a broken line makes them fail for the whole file, they unify columns of mixed
types, and their records do not know their position.
"""

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from redrafter_training.data.records import (
    LINES,
    PARQUET,
    Record,
    load_rows,
    open_parquet,
    parquet_rows,
    parse_lines,
    read_records,
)

PIECE_BYTES = 8 << 20
PIECE_RECORDS = 256

Piece = Callable[
    [], Iterator[Record]
]  # can be pickled; yields the same records on every machine that can read the files


def cut(
    source: str,
    *,
    config: str | None = None,
    split: str | None = None,
    piece_bytes: int = PIECE_BYTES,
    piece_records: int = PIECE_RECORDS,
) -> Iterator[Piece]:
    """Pieces that together hold the records of `read_records(source, config=config, split=split)`, in order.

    Pieces of JSON lines and Parquet read the file themselves; other records are read here and stored in the piece.

    Raises:
        DataError: as `read_records`.
    """
    path = Path(source).expanduser().absolute()
    suffix = path.suffix.lower()
    if config is None and split is None:
        if path.is_file() and suffix in LINES:
            return _cut_lines(path, piece_bytes)
        if path.is_file() and suffix == PARQUET:
            return _cut_parquet(path)
    if path.is_file() or suffix in (*LINES, PARQUET, ".json", ".txt"):
        return _cut_records(read_records(source, config=config, split=split), piece_records)
    return _cut_rows(source, config, split, piece_records)


def _cut_lines(path: Path, size: int) -> Iterator[Piece]:
    start = end = 0
    first = number = 1
    with path.open("rb") as file:
        for line in file:
            end, number = end + len(line), number + 1
            if end - start >= size:
                yield partial(_read_lines, path, start, end, first)
                start, first = end, number
    if end > start:
        yield partial(_read_lines, path, start, end, first)


def _read_lines(path: Path, start: int, end: int, first: int) -> Iterator[Record]:
    with path.open("rb") as file:
        file.seek(start)
        yield from parse_lines(BytesIO(file.read(end - start)), path.name, first)


def _cut_parquet(path: Path) -> Iterator[Piece]:
    file = open_parquet(path)
    first = 0
    for group in range(file.num_row_groups):
        yield partial(parquet_rows, path, group, first)
        first += file.metadata.row_group(group).num_rows


def _cut_records(records: Iterator[Record], size: int) -> Iterator[Piece]:
    while some := list(islice(records, size)):
        yield partial(iter, some)


def _cut_rows(name: str, config: str | None, split: str | None, size: int) -> Iterator[Piece]:
    rows = load_rows(name, config, split)
    arrow = rows.with_format("arrow")
    for first in range(0, len(rows), size):
        yield partial(_decode_rows, name, first, _to_bytes(arrow[first : first + size]), rows.features)


def _to_bytes(table: Any) -> bytes:
    """The table serialised: pickling a slice would include the memory of its whole columns."""
    import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _decode_rows(name: str, first: int, table: bytes, features: Any) -> Iterator[Record]:
    import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from datasets import Dataset, DatasetInfo

    with pa.ipc.open_stream(table) as stream:
        rows = Dataset(stream.read_all(), info=DatasetInfo(features=features))
    for index, value in enumerate(rows, start=first):
        yield Record(f"{name}[{index}]", value)
