# SPDX-License-Identifier: Apache-2.0
"""Conversations read, rendered and tokenised by all machines of a Ray cluster, through Ray Data."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
import pyarrow.compute as compute  # type: ignore[import-untyped,import-not-found,unused-ignore]
import ray
from ray.data import ActorPoolStrategy, Dataset

from redrafter_training.data.conversations import DETECTION_RECORDS, usable
from redrafter_training.data.example_store import SCHEMA, content_columns, write_store
from redrafter_training.data.record_forms import FORMS, detect_form
from redrafter_training.data.record_shards import Piece, cut
from redrafter_training.data.records import Record
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord
from redrafter_training.data.tokenize import Example, ExampleEncoder
from redrafter_training.distributed.ray_train import connect

# A row is an example, or a record that cannot be used, with its reason.
ROW = pa.schema(
    [
        *SCHEMA,
        ("piece", pa.int64()),
        ("new", pa.bool_()),  # whether it is the first example of its record, which holds the facts about the record
        ("truncated", pa.bool_()),
        ("opening", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@contextmanager
def session() -> Iterator[None]:
    """The current Ray session, or a new one that ends with the block."""
    own = not ray.is_initialized()
    connect(None)
    try:
        yield
    finally:
        if own:
            ray.shutdown()


class EncodePieces:
    """Encodes pieces of the data in one process of the cluster."""

    def __init__(self, encoder: ExampleEncoder, form: str, keep_evaluation: bool) -> None:
        self.encoder, self.keep_evaluation = encoder, keep_evaluation
        (self.form,) = (known for known in FORMS if known.name == form)

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number, piece in zip(batch["number"], batch["piece"], strict=True):
            rows = [{**row, "piece": int(number)} for record in pickle.loads(piece)() for row in self._rows(record)]
            yield pa.Table.from_pylist(rows, schema=ROW)

    def _rows(self, record: Record) -> list[dict[str, Any]]:
        try:
            conversation = usable(record, self.form, keep_evaluation=self.keep_evaluation)
            examples = self.encoder.encode(conversation)
        except UnusableRecord as problem:
            return [{"where": record.where, "reason": problem.reason, "detail": problem.detail}]
        rows = [_row(example) for example in examples]
        rows[0] |= {
            "new": True,
            "truncated": any(example.cut for example in examples),
            "opening": conversation.opening > 0,
        }
        return rows


def _row(example: Example) -> dict[str, Any]:
    return {
        "where": example.where,
        "tokens": example.tokens.numpy(),
        "loss": example.loss_mask.numpy(),
        "cut": example.cut,
        "asked": example.asked,
        **content_columns(example),
        **dict.fromkeys(("new", "truncated", "opening"), False),
    }


def ingest(source: str, encoder: ExampleEncoder, path: Path, *, keep_evaluation: bool = False, **choice: Any) -> None:
    """Stores the examples of `source` at `path`, the same ones as from `load_conversations` and `encode_all`.

    Needs a Ray session, whose processes can read `source` if it is a file. `choice` are the keywords of `cut`.

    Raises:
        DataError: as `load_conversations` and `encode_all`; nothing is stored.
    """
    pieces = list(cut(source, **choice))
    head = list(islice(chain.from_iterable(piece() for piece in pieces), DETECTION_RECORDS))
    if not head:
        raise DataError(f"{source} holds no records")
    form = detect_form(head, source)
    if form.columns != ("text",):
        _ = encoder.template  # a missing template is better reported here than by a process on another machine
    encoded = _encoded(pieces, encoder, form.name, keep_evaluation)
    write_store(path, lambda write: _collect(encoded, source, write))


def _encoded(pieces: list[Piece], encoder: ExampleEncoder, form: str, keep_evaluation: bool) -> Dataset:
    rows = ray.data.from_items(
        [{"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)],
        override_num_blocks=len(pieces),
    )
    # Otherwise the blocks come in the order in which processes finish.
    rows.context.execution_options.preserve_order = True
    max_size = max(1, min(len(pieces), int(ray.cluster_resources().get("CPU", 1))))
    return rows.map_batches(
        EncodePieces,
        # A copy without cached properties, which may not be picklable.
        fn_constructor_args=(replace(encoder), form, keep_evaluation),
        compute=ActorPoolStrategy(min_size=1, max_size=max_size),
        batch_size=1,
        num_cpus=1,
    )


def _collect(encoded: Dataset, source: str, write: Any) -> DataReport:
    report, before = DataReport(), 0
    for table in encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for number in compute.unique(table["piece"]).to_pylist():
            if number < before:
                raise RuntimeError(f"Ray Data gave piece {number} of {source} after piece {before}")
            before = number
        used = table.filter(compute.is_null(table["reason"]))
        for row in table.filter(compute.is_valid(table["reason"])).select(["where", "reason", "detail"]).to_pylist():
            report.skip(row["where"], UnusableRecord(Reason(row["reason"]), row["detail"]))
        if len(used):
            report.used += compute.sum(used["new"]).as_py()
            report.truncated += compute.sum(used["truncated"]).as_py()
            report.opening += compute.sum(used["opening"]).as_py()
            report.cut_tokens += compute.sum(used["cut"]).as_py()
            write(used.select(SCHEMA.names).cast(SCHEMA))
    report.require_used(source)
    return report
