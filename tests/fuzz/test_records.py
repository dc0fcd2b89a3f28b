# SPDX-License-Identifier: Apache-2.0
"""Records of training data: examples, or an error that says why none of them can be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.report import DataError
from redrafter_training.data.tokenize import ExampleEncoder, encode_all
from tests.fuzz.inputs import damaged, damaged_bytes, damaged_json, only, to_json
from tests.training.chat_tokenizers import CHATML, QWEN_LIKE, R1_LIKE, byte_tokenizer

SHAREGPT = {"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes", "reasoning_content": None},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "No", "reasoning_content": "hm"},
    ]
}
ALPACA = {"instruction": "Say", "input": "it", "output": "It."}
TEXT = {"text": "Once upon a time."}
COLUMNS = {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Yes"]}}
RECORDS = [SHAREGPT, MESSAGES, ALPACA, TEXT, COLUMNS]
KEYS = ("conversations", "messages", "from", "value", "role", "content", "instruction", "output", "text", "reasoning")
ENCODERS = [ExampleEncoder(byte_tokenizer(template), 200) for template in (CHATML, QWEN_LIKE, R1_LIKE)]


class Told(Exception):  # noqa: N818 - a DataError's lines, for `only`
    """What the user is told, of whose table each line must be printable."""


@contextmanager
def told() -> Iterator[None]:
    lines: list[str] = []
    try:
        yield
    except DataError as error:
        lines = str(error).splitlines()
    assert len(lines) < 60
    if lines:
        raise Told(" ".join(lines))


def read(scratch: Path, name: str, document: bytes) -> None:
    """Reads the file in the way of a training, with templates of three kinds in turn."""
    path = scratch / name
    path.write_bytes(document)
    with only(Told), told():
        conversations, report = load_conversations([str(path)])
        assert report.used == len(conversations) > 0
        encoder = ENCODERS[len(document) % len(ENCODERS)]
        for made in encode_all(conversations, encoder, report, quiet=True):
            assert len(made) <= encoder.max_length
        assert str(report).replace("\n", "").isprintable()


@given(damaged_json([*RECORDS, *([record, record] for record in RECORDS)], KEYS))
@example(b"[" * 100_000)
@example(b'{"messages": ' + b"9" * 5_000 + b"}")
@example(to_json([{"x\x00" * 2_000: 1}]))
def test_json(scratch: Path, document: bytes) -> None:
    read(scratch, "data.json", document)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Lines of JSON, with lines and bytes that are not as they should be."""
    made = draw(st.lists(damaged(RECORDS, KEYS).map(to_json), min_size=1, max_size=3))
    return draw(damaged_bytes(st.just(b"\n".join([to_json(SHAREGPT), *made])), max_changes=2))


@given(lines())
@example(b"[" * 100_000)
@example(b"\xef\xbb\xbf" + to_json(MESSAGES) + b"\n\xff\n")
def test_lines(scratch: Path, document: bytes) -> None:
    read(scratch, "data.jsonl", document)


@given(damaged_bytes(st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"")
@example(b"\x00")
def test_text(scratch: Path, document: bytes) -> None:
    read(scratch, "data.txt", document)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@given(damaged_bytes(st.sampled_from([CHATML, QWEN_LIKE, R1_LIKE]).map(str.encode), max_changes=3))
@example(b"{{ messages[0]['content'] * 999999 }}")
@example(b"{% for a in range(99999999999) %}{% endfor %}")
@example(b"{{ 9 ** 9 ** 9 }}")
@example(b"{% f" + 5000 * b"9" + b" %}")  # Jinja repeats the tag's name
def test_chat_template(scratch: Path, tokenizer: Any, document: bytes) -> None:
    path = scratch / "chat.jinja"
    path.write_bytes(document)
    with only(Told), told():
        resolve_chat_template(tokenizer, str(path))
