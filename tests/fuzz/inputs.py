# SPDX-License-Identifier: Apache-2.0
"""What every parser owes to every input, and inputs made by damaging valid ones.

A test draws an input, writes what has to be a file into `scratch`, and reads it within `only(...)`:

    @given(damaged_json(VALID))
    @example(b"[" * 100_000)  # once a RecursionError
    def test_config(scratch: Path, document: bytes) -> None:
        (scratch / "config.json").write_bytes(document)
        with only(CheckpointError):
            read_config(scratch)
"""

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

LONGEST_MESSAGE = 2000
MAX_SECONDS = 1.0  # of processor time, which a busy machine does not lengthen
MAX_MEMORY = 256 << 20  # bytes for one input
HANGS_AFTER = 20  # seconds by the clock

_LIBC = ctypes.CDLL(None)


@dataclass
class Tally:
    """What became of a test's inputs."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)  # bytes after each round

    @property
    def kept(self) -> int:
        """Bytes that the memory has grown by since the second round; the first two fill caches."""
        return self.memory[-1] - self.memory[min(1, len(self.memory) - 1)]

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs, {self.refused} refused, slowest {self.slowest:.3f} s, "
            f"memory {self.kept / (1 << 20):+.1f} MiB, {self.seconds:.0f} s in all"
        )


TALLIES: dict[str, Tally] = defaultdict(Tally)


@contextmanager
def only(*documented: type[Exception]) -> Iterator[None]:
    """What a parser may do with an input: accept it, or refuse it with one of these errors, in one line; soon."""
    tally = _current.tally
    tally.inputs += 1
    start, peak = time.process_time(), _peak_memory()
    _current.reading = True
    # A collection of garbage in the middle would count as the parser's time: with vLLM loaded one takes half a second.
    gc.disable()
    signal.alarm(HANGS_AFTER)
    message = None
    try:
        yield
    except documented as error:
        message = str(error)
    finally:
        signal.alarm(0)
        gc.enable()
        _current.reading = False
    taken = time.process_time() - start
    if message is not None:
        tally.refused += 1
        assert message.strip(), "the error says nothing"
        assert message.isprintable(), f"not one printable line: {message[:LONGEST_MESSAGE]!r}"
        assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:LONGEST_MESSAGE]}"
    tally.slowest = max(tally.slowest, taken)
    assert taken < MAX_SECONDS, f"took {taken:.1f} s"
    assert _peak_memory() - peak < MAX_MEMORY, f"took {_peak_memory() - peak >> 20} MiB"


@contextmanager
def run_in(directory: Path, tally: Tally) -> Iterator[None]:
    """One round of a test: works in `directory`, and within `only` nothing is written outside of it."""
    if not _current.is_hooked:
        sys.addaudithook(_audit)
        _current.is_hooked = True
    before, alarm = os.getcwd(), signal.signal(signal.SIGALRM, _hangs)
    _current.tally, _current.directory = tally, str(directory.resolve())
    os.chdir(directory)
    start = time.monotonic()
    try:
        yield
    finally:
        tally.seconds += time.monotonic() - start
        os.chdir(before)
        signal.signal(signal.SIGALRM, alarm)


def memory() -> int:
    """Bytes that this process holds, without garbage and without what the allocator keeps for later."""
    gc.collect()
    _LIBC.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Values that have broken parsers: of the wrong type, beyond every number type, long, deep, not to be written down.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31 - 1,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**12,
    10**20,
    10**30,
    10**4000,
    0.5,
    1e9,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "0",
    "true",
    "\x00",
    "\n",
    "\u202e",
    "\ud800",
    "../x",
    "/etc/passwd",
    ".",
    "~",
    "x" * 5000,
    "x\n" * 5000,
    [],
    {},
    [[]],
    [{}],
    {"": None},
    [0] * 5000,
    "@deep",
    "@deeper",
    "@digits",
)
# What Python could not write: `to_json` puts it in the place of these strings.
_RAW = {
    b'"@deep"': b"[" * 700 + b"]" * 700,
    b'"@deeper"': b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'"@digits"': b"9" * 5000,
}


@cache  # hypothesis checks every strategy that is new to it
def values() -> st.SearchStrategy[Any]:
    """Any JSON value, the hostile ones often."""
    leaves = (
        st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(max_size=20) | st.integers(2, 200).map(_nested)
    )
    any_value = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=8), leaves, max_size=3)
    return any_value.map(deepcopy)  # documents get damaged further, samples stay as they are


@cache
def keys(known: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Names: of `known`, slips of the pen in them, and anything."""
    slips = st.tuples(st.sampled_from(known), st.integers(0, 40), st.sampled_from(["", "_", "-", "x", "\n", "\x00"]))
    return (
        st.sampled_from(known)
        | slips.map(lambda slip: slip[0][: slip[1]] + slip[2] + slip[0][slip[1] + 1 :])
        | st.text(max_size=20)
    )


_CHANGES = st.sampled_from(["replace", "replace", "remove", "add", "rename"])
_HOW_MANY = st.integers(0, 4)
_PIECES = st.binary(max_size=8) | st.sampled_from(
    [b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"\r\n", b"[" * 5000, b'{"":' * 5000, b"9" * 5000]
)
_BYTE_CHANGES = st.sampled_from(["overwrite", "insert", "cut", "truncate", "repeat"])


@st.composite
def damaged(draw: st.DrawFn, valid: Sequence[Any], known: tuple[str, ...] = ("a",)) -> Any:
    """One of the `valid` documents with up to four places replaced, removed, renamed or added."""
    document = json.loads(json.dumps(draw(st.sampled_from(valid))))
    for _ in range(draw(_HOW_MANY)):
        parent = document
        while isinstance(parent, dict | list) and parent:
            places = list(parent) if isinstance(parent, dict) else range(len(parent))
            place = draw(st.sampled_from(places))
            inner = parent[place]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                parent = inner
                continue
            change = draw(_CHANGES)
            if change == "replace":
                parent[place] = draw(values())
            elif change == "remove":
                del parent[place]
            elif isinstance(parent, list):
                parent.insert(place, draw(values()))
            else:
                parent[draw(keys(known))] = draw(values()) if change == "add" else parent.pop(place)
            break
    return document


@st.composite
def damaged_bytes(draw: st.DrawFn, intact: st.SearchStrategy[bytes], max_changes: int = 4) -> bytes:
    """Bytes with up to `max_changes` pieces overwritten, inserted, repeated or cut out."""
    data = draw(intact)
    for _ in range(draw(st.integers(0, max_changes))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        piece = draw(_PIECES)
        change = draw(_BYTE_CHANGES)
        data = {
            "overwrite": data[:start] + piece + data[end:],
            "insert": data[:start] + piece + data[start:],
            "cut": data[:start] + data[end:],
            "truncate": data[:start],
            "repeat": data[:end] + data[start:],
        }[change]
    return data


def damaged_json(valid: Sequence[Any], known: tuple[str, ...] = ("a",)) -> st.SearchStrategy[bytes]:
    """The text of a JSON document, with values, keys or bytes that are not as they should be."""
    return damaged_bytes(damaged(valid, known).map(to_json), max_changes=2)


def to_json(document: Any) -> bytes:
    text = json.dumps(document).encode()
    for name, raw in _RAW.items():
        text = text.replace(name, raw)
    return text


def _peak_memory() -> int:
    """The most that this process ever had: what tests before have freed hides as much."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _nested(depth: int) -> Any:
    nested: Any = []
    for _ in range(depth):
        nested = [nested]
    return nested


class _Current:
    """The round that runs."""

    tally = Tally()
    directory = ""
    reading = False
    is_hooked = False


_current = _Current()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FILE_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _current.reading or not (event in _FILE_CHANGES or (event == "open" and (arguments[2] or 0) & _WRITES)):
        return
    paths = [os.fsdecode(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)]
    if outside := [path for path in paths[:2] if not os.path.realpath(path).startswith(_current.directory)]:
        raise AssertionError(f"{event} of {outside[0]}, outside {_current.directory}")


def _hangs(*_: object) -> None:
    raise AssertionError(f"still reading after {HANGS_AFTER} s")
