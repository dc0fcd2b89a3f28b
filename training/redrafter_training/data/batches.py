# SPDX-License-Identifier: Apache-2.0
"""Batches of conversations and the target's responses.

A row holds several examples (packing), or a single one, padded to the longest of its batch.
"""

from collections.abc import Iterator, Sequence

import torch

from redrafter_training.data.packing import Packing, arrange
from redrafter_training.data.tokenize import Example
from redrafter_training.data.windows import Windows

ROW_MULTIPLE = 16  # few distinct row lengths: fewer shapes for allocators and compilers


def collate(examples: Sequence[Example], min_length: int) -> Windows:
    """Rows of one example each, padded; see `arrange` for the loss mask. [B, L >= min_length]"""
    longest = max(min_length, *(len(example) for example in examples))
    return arrange([[example] for example in examples], -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)


def conversation_batches(
    conversations: Sequence[Example],
    responses: Sequence[Example],
    *,
    batch_size: int,
    response_fraction: float,
    min_length: int,
    seed: int,
    window: int | None = None,
) -> Iterator[Windows]:
    """Endless batches with `response_fraction` of the rows from `responses`; each source in a new order per pass.

    Args:
        min_length: fewest tokens of a row.
        window: tokens of a row to pack several examples into; None gives each example its own row.

    Raises:
        ValueError: a source is empty and its share of the rows is not 0.
    """
    wanted = round(batch_size * response_fraction)
    sources = [(conversations, batch_size - wanted), (responses, wanted)]
    streams = [(_row_stream(source, seed + number, window), rows) for number, (source, rows) in enumerate(sources)]
    while True:
        chosen = [next(stream) for stream, rows in streams for _ in range(rows)]
        yield collate([example for (example,) in chosen], min_length) if window is None else arrange(chosen, window)


def pass_steps(examples: Sequence[Example], rows: int, seed: int, window: int | None) -> float:
    """Steps that the first pass over `examples` takes with `rows` of each batch; 0 without rows.

    Later passes are packed a little differently.
    """
    if not rows:
        return 0.0
    if window is None:
        return len(examples) / rows
    generator = torch.Generator().manual_seed(seed)
    return len(_packing(examples, window, generator)) / rows


def held_out_rows(examples: Sequence[Example], min_length: int, window: int | None) -> Windows:
    """Held-out examples in rows like those of the batches; no rows if there are no examples."""
    if not examples:
        return Windows.full(torch.empty(0, min_length, dtype=torch.long))
    if window is None:
        return collate(examples, min_length)
    packing = Packing(examples, window, seed=0)
    return packing.rows(range(len(packing)))


def _row_stream(source: Sequence[Example], seed: int, window: int | None) -> Iterator[Sequence[Example]]:
    """The examples of each row, in endless passes over the source."""
    if not source:
        raise ValueError("a source of data that rows of a batch come from is empty")
    generator = torch.Generator().manual_seed(seed)
    while True:
        if window is None:
            yield from ([source[index]] for index in torch.randperm(len(source), generator=generator).tolist())
        else:
            packing = _packing(source, window, generator)
            yield from map(packing.members, range(len(packing)))


def _packing(source: Sequence[Example], window: int, generator: torch.Generator) -> Packing:
    """The packing of a pass."""
    return Packing(source, window, int(torch.randint(2**31, (), generator=generator)))
