# SPDX-License-Identifier: Apache-2.0
"""Files of keys for the training commands: read, or refused with a message and exit code 2."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import redrafter_vllm.checkpoint.io  # noqa: F401 - imported by --init-from, which is not what its inputs cost
from redrafter_training import cli
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.responses.config import ResponseJob
from tests.fuzz.inputs import damaged, damaged_bytes, only

TRAINING = {
    "recipe": "short",
    "chat_template": "vicuna",
    "chat_template_kwargs": {"enable_thinking": False},
    "data_split": "train",
    "num_workers": [1, 2],
    "device": "cpu",
    "max_steps": 9,
    "max_seconds": 60.5,
    "beam_length": 3,
    "loss": {"label_share": 0.5, "labels": "data"},
    "responses": {"count": 4, "temperatures": [0.0, 0.7], "folders": ["a", "b"]},
    "response_fraction": 0.5,
    "learning_rate": 1e-3,
    "packing": False,
    "seed": 1,
}
RESPONSES = {
    "out": "answers",
    "count": 5,
    "window": 300,
    "temperatures": [0.0],
    "engine": {"max_num_seqs": 4},
    "device": "cpu",
}
GIVEN = ["--target", "t", "--data", "stdlib", "--config"]


class Refused(Exception):  # noqa: N818 - what the user is told, for `only`
    """The message of a command that exits with 2."""


@contextmanager
def told() -> Iterator[None]:
    """Raises Refused with the message of an exit; of the message's lines, one."""
    shown, code = io.StringIO(), None
    try:
        with redirect_stderr(shown):
            yield
    except SystemExit as end:
        code = end.code
    if code is not None:
        message = shown.getvalue().partition("error: ")[2]
        assert code == 2 and len(message) < 10_000
        raise Refused(" ".join(message.split()))


def names(holder: type) -> list[str]:
    """All keys, those inside others too."""
    hints = get_type_hints(holder)
    found = []
    for entry in fields(holder):
        kind = hints[entry.name]
        found += [entry.name, *(names(kind) if is_dataclass(kind) else [])]
    return found


def documents(valid: dict[str, Any], holders: Sequence[type]) -> st.SearchStrategy[bytes]:
    """The text of a file of keys, with values, keys or bytes that are not as they should be."""
    known = tuple(name for holder in holders for name in names(holder))
    return damaged_bytes(damaged([valid], known).map(to_yaml), max_changes=2)


def to_yaml(document: Any) -> bytes:
    """Half-valid text, too: a lone surrogate has no UTF-8."""
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


@pytest.fixture(autouse=True, scope="module")
def one_parser() -> Iterator[None]:
    """Making the parser takes longer than parsing with it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "build_parser", cache(cli.build_parser))
        yield


def read(scratch: Path, document: bytes, parse: Callable[[list[str]], object]) -> None:
    path = scratch / "keys.yaml"
    path.write_bytes(document)
    with only(Refused), told():
        parse([*GIVEN, str(path)])


@pytest.mark.slow
@given(documents(TRAINING, (Job, DistillConfig)))
@example(b"[" * 100_000)
@example(b"a: " * 5_000)
@example(b"batch_size: null\n")
@example(b"responses: 512\n")
@example(b"data: \xe9.json\n")
@example(b"&a [*a]\n")
@example(b"seed: !!python/object/apply:os.system [x]\n")
@example(b"num_workers: [1, 2, 3]\n")
@example(b"max_steps: " + b"9" * 5_000)
@example(b"chat_template: " + b"v" * 5_000)
@example(b"data: " + b"v" * 5_000)
@example(b"\n".join(b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)))
def test_training(scratch: Path, document: bytes) -> None:
    read(scratch, document, cli.parse)


@pytest.mark.slow
@given(documents(RESPONSES, (ResponseJob,)))
@example(b"engine: 3\n")
@example(b"out: null\n")
def test_response_generation(scratch: Path, document: bytes) -> None:
    read(scratch, document, lambda argv: cli.parse_keys(ResponseJob, "redrafter_training.respond", "answers", argv))
