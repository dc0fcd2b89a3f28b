# SPDX-License-Identifier: Apache-2.0
"""The distinct texts of a training, identified by their tokens.

A text is what the target reads from a position 0 on: a row, or one document of a packed row. A causal target's hidden
states depend only on the text, not on its row or epoch.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

import numpy as np
from torch import Tensor

from redrafter_training.data.windows import Windows

PADDING = 0  # token that fills rows


class UnknownTextError(ValueError):
    """A text that is not in the index."""


class TextIndex:
    """Texts numbered in the order of their first occurrence."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # tokens with hidden states to store, by text
        self._tokens: list[np.ndarray] = []  # int32, without padding
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)

    def add(self, windows: Windows) -> None:
        """Adds those texts of `windows` that are new."""
        tokens, loss_mask = _array(windows.tokens), windows.loss_mask.cpu().numpy()
        for row, first, last in _places(tokens, windows.positions):
            content = _without_padding(tokens[row, first:last])
            # A text may end in tokens with the id of padding that are in the loss mask.
            counting = np.flatnonzero(loss_mask[row, first:last])
            length = max(len(content), int(counting[-1]) + 1 if len(counting) else 0)
            number = self._numbers.setdefault(_key(content), len(self.lengths))
            if number == len(self.lengths):
                self.lengths.append(length)
                self._tokens.append(content.copy())
            else:
                self.lengths[number] = max(self.lengths[number], length)

    def tokens(self, number: int) -> np.ndarray:
        """The text's tokens. [n] int32"""
        content = self._tokens[number]
        return np.pad(content, (0, self.lengths[number] - len(content)), constant_values=PADDING)

    def find(self, tokens: Tensor, positions: Tensor | None = None) -> Iterator[tuple[int, int, int]]:
        """(row, first position, number) of each text in `tokens` [B, L].

        Raises:
            UnknownTextError: a text has never been added.
        """
        rows = _array(tokens)
        for row, first, last in _places(rows, positions):
            number = self._numbers.get(_key(_without_padding(rows[row, first:last])))
            if number is None:
                raise UnknownTextError(f"row {row} has a text that is not in the index")
            yield row, first, number

    def digest(self) -> str:
        """Digest of all texts and their order."""
        digest = hashlib.sha256(np.asarray(self.lengths, dtype=np.int64).tobytes())
        for key in self._numbers:
            digest.update(key)
        return digest.hexdigest()[:32]

    def forget_tokens(self) -> None:
        """Frees the tokens, which `find` does not need."""
        self._tokens = []


def texts_of(batches: Iterable[Windows], steps: int, held_out: Windows) -> tuple[TextIndex, int]:
    """The texts of the first `steps` batches, then those held out; and the number of the former.

    Raises:
        TypeError: `batches` is an iterator; training iterates over the batches again.
    """
    if isinstance(batches, Iterator):
        raise TypeError("batches that are iterated more than once must start over each time: see `Repeated`")
    index = TextIndex()
    for windows in islice(batches, steps):
        index.add(windows)
    trained = len(index)
    if len(held_out):
        index.add(held_out)
    return index, trained


def _array(tokens: Tensor) -> np.ndarray:
    return tokens.cpu().numpy().astype(np.int32)


def _places(tokens: np.ndarray, positions: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """(row, first, last) of each text."""
    rows, length = tokens.shape
    if positions is None:
        yield from ((row, 0, length) for row in range(rows))
        return
    for row, places in enumerate(positions.cpu().numpy()):
        starts = [*np.flatnonzero(places == 0).tolist(), length]
        yield from ((row, first, last) for first, last in pairwise(starts))


def _without_padding(tokens: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(tokens != PADDING)
    return tokens[: int(used[-1]) + 1 if len(used) else 0]


def _key(content: np.ndarray) -> bytes:
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest()
