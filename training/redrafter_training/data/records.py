# SPDX-License-Identifier: Apache-2.0
"""Raw records of local files and Hugging Face data sets, each with its position."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redrafter_training.data.report import DataError, Reason, UnusableRecord
from redrafter_vllm.utils.messages import sentence

TRAIN = "train"


@dataclass(frozen=True)
class Record:
    """One raw record; if it could not be read, `problem` is set and `value` is None."""

    where: str
    value: Any = None
    problem: UnusableRecord | None = None


def read_records(source: str, *, config: str | None = None, split: str | None = None) -> Iterator[Record]:
    """Every record of `source`, in order.

    Args:
        source: a `.json`, `.jsonl`, `.parquet` or `.txt` file (a text file is one record), a folder, or a data set
            on the hub, as `datasets.load_dataset` takes them.
        config: configuration ("subset") of a folder or hub data set.
        split: split of a folder or hub data set (default: train, or the only one).

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if config is not None or split is not None:
            raise DataError(
                f"{source} is a file and has neither configurations nor splits: leave --data-config, --data-split and "
                "--held-out-split away"
            )
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{source}: unknown kind of file; known are {', '.join(_READERS)}")
        return reader(path)
    if path.suffix.lower() in _READERS:
        raise DataError(f"{source}: no such file")
    return _read_dataset(source, config, split)


def _read_json(path: Path) -> Iterator[Record]:
    """A JSON array of records, a single record, or JSON lines in a file with the wrong suffix."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from error
    except json.JSONDecodeError as error:
        if text.lstrip()[:1] == "{":
            yield from _read_jsonl(path)
            return
        if not text.strip():
            return
        raise DataError(f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        # Numbers with thousands of digits, thousands of nested brackets.
        raise DataError(f"{path}: JSON that cannot be read: {error}") from error
    for index, value in enumerate(content if isinstance(content, list) else [content]):
        yield Record(f"{path.name}[{index}]", value)


def _read_jsonl(path: Path) -> Iterator[Record]:
    # Bytes, because text mode and splitlines() also split lines at characters that JSON strings may contain.
    with path.open("rb") as file:
        yield from parse_lines(file, path.name, 1)


def parse_lines(lines: Iterable[bytes], name: str, first: int) -> Iterator[Record]:
    """The records of JSON lines of the file `name`; the first of `lines` has the number `first` there."""
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            text = line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8")
            yield Record(where, json.loads(text))
        except UnicodeDecodeError as error:
            yield Record(where, problem=UnusableRecord(Reason.BROKEN_TEXT, str(error)))
        except json.JSONDecodeError as error:
            yield Record(where, problem=UnusableRecord(Reason.BROKEN_JSON, f"column {error.colno}: {error.msg}"))
        except (ValueError, RecursionError) as error:
            # Numbers with thousands of digits, thousands of nested brackets.
            yield Record(where, problem=UnusableRecord(Reason.BROKEN_JSON, str(error)))


def _read_text(path: Path) -> Iterator[Record]:
    try:
        yield Record(path.name, {"text": path.read_text(encoding="utf-8-sig")})
    except UnicodeDecodeError as error:
        yield Record(path.name, problem=UnusableRecord(Reason.BROKEN_TEXT, str(error)))


def open_parquet(path: Path) -> Any:
    """The file as pyarrow's `ParquetFile`.

    Raises:
        DataError: it is not a Parquet file, or pyarrow is missing.
    """
    try:
        import pyarrow  # type: ignore[import-untyped,import-not-found,unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error


def _read_parquet(path: Path) -> Iterator[Record]:
    return parquet_rows(path, None, 0)


def parquet_rows(path: Path, group: int | None, first: int) -> Iterator[Record]:
    """The rows of one row group, or of all groups; `first` is the number of the first row."""
    groups = None if group is None else [group]
    index = first
    for batch in open_parquet(path).iter_batches(batch_size=1024, row_groups=groups):
        for value in batch.to_pylist():
            yield Record(f"{path.name}[{index}]", value)
            index += 1


def _read_dataset(name: str, config: str | None, split: str | None) -> Iterator[Record]:
    for index, value in enumerate(load_rows(name, config, split)):
        yield Record(f"{name}[{index}]", value)


def load_rows(name: str, config: str | None, split: str | None) -> Any:
    """A data set of the `datasets` library: the given split, or by default train, or the only one.

    Raises:
        DataError: it cannot be loaded, the library is missing, or there are several splits and none is train.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{name}: not a local file, and data sets need the datasets library: pip install datasets"
        ) from error
    try:
        return load_dataset(name, config, split=split or TRAIN)
    except Exception as error:
        # The library raises dozens of types, from network failures to broken loaders; all mean the same here.
        if split is None and (names := _split_names(name, config)) and TRAIN not in names:
            return load_rows(name, config, _only(name, names))
        chosen = ", ".join(f"{key} {value!r}" for key, value in (("configuration", config), ("split", split)) if value)
        what = f"{name}: neither a local file nor a data set that could be loaded{chosen and f' ({chosen})'}"
        message = f"{what}: {sentence(error)}"
        if "onfig name is missing" in str(error):
            message += " (--data-config chooses one)"
        raise DataError(message) from error


def _split_names(name: str, config: str | None) -> list[str]:
    from datasets import get_dataset_split_names

    try:
        return list(get_dataset_split_names(name, config))
    except Exception:  # loading has failed with the same error, which is reported
        return []


def _only(name: str, splits: list[str]) -> str:
    if len(splits) > 1:
        raise DataError(f"{name} has no split named {TRAIN}; --data-split chooses one of {', '.join(splits)}")
    return splits[0]


def data_set_files(folder: str, config: str | None, split: str | None) -> list[Path]:
    """The files of a local folder that `load_rows` reads.

    Raises:
        DataError: as `load_rows`.
    """
    try:
        from datasets import load_dataset_builder

        files = load_dataset_builder(folder, config).config.data_files or {}
    except Exception as error:  # as in load_rows
        raise DataError(f"{folder}: no data set that could be loaded: {sentence(error)}") from error
    names = [str(named) for named in files]
    chosen = split.partition("[")[0] if split else TRAIN if TRAIN in names else _only(folder, names)
    return [Path(path) for named, paths in files.items() if str(named) == chosen for path in paths]


LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _read_json,
    **dict.fromkeys(LINES, _read_jsonl),
    PARQUET: _read_parquet,
    ".txt": _read_text,
}
DATA_SUFFIXES = tuple(_READERS)
