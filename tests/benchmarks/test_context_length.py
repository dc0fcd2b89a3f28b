# SPDX-License-Identifier: Apache-2.0
"""Tokens per step by context: prompts of a given length, figures, the check. Engines are in tests/engine."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.serving import context_length
from benchmarks.serving.chat.padding import Exchange, filler_prompts, padded, rotated, short_questions
from benchmarks.serving.chat.questions import Reader
from benchmarks.serving.context_length import Options, below, parse_args, prompt_lengths, rows_of, standard_error
from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_vllm.config import DraftingConfig
from tests.benchmarks.test_chat import serving
from tests.paths import ASSET
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer(CHATML)
READER = Reader(TOKENIZER, resolve_chat_template(TOKENIZER), (1,))
# A byte is a token, and so is each of <|im_start|> and <|im_end|>.
QUESTION = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
ALONE = 2 * 2 - 1 + len("user\nWhy?\nassistant\n")
EXCHANGES = [Exchange("0123456789", "abcdefghij"), Exchange("How?", "So.")]


def text(prompt: list[int]) -> str:
    return str(TOKENIZER.decode(prompt))


def test_a_prompt_that_is_filled_with_the_end_of_the_text_before_it() -> None:
    assert text(padded(READER, "Why?", EXCHANGES, ALONE)) == QUESTION
    found = padded(READER, "Why?", EXCHANGES, ALONE + 5)
    assert len(found) == ALONE + 5
    assert text(found) == QUESTION.replace("Why?", "So.\n\nWhy?")


def test_a_prompt_behind_a_whole_exchange() -> None:
    whole = f"<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n{QUESTION}"
    length = len(TOKENIZER(whole)["input_ids"])
    assert text(padded(READER, "Why?", EXCHANGES, length)) == whole
    assert text(padded(READER, "Why?", EXCHANGES, length + 4)) == whole.replace("How?", "ij\n\nHow?")
    # One token less, and only text of that exchange comes in front.
    assert text(padded(READER, "Why?", EXCHANGES, length - 1)) == QUESTION.replace("Why?", "How?\n\nSo.\n\nWhy?")


def test_lengths_that_cannot_be_met() -> None:
    with pytest.raises(ValueError, match="question is longer"):
        padded(READER, "Why?", EXCHANGES, ALONE - 1)
    with pytest.raises(ValueError, match="text to pad with makes up"):
        padded(READER, "Why?", EXCHANGES, 1000)


def test_questions_have_different_text_in_front() -> None:
    assert rotated([1, 2, 3], 0) == [1, 2, 3]  # type: ignore[list-item]
    assert rotated([1, 2, 3], 4) == [2, 3, 1]  # type: ignore[list-item]


def test_questions_of_all_categories_in_turn() -> None:
    longest = 400
    found = short_questions(READER, "mt-bench", 16, longest=longest)
    assert len(set(found)) == 16 and found[0].startswith("Compose an engaging travel blog")
    assert all(len(question.encode()) + 23 - 4 <= longest for question in found)
    with pytest.raises(ValueError, match="questions of at most 30 tokens"):
        short_questions(READER, "mt-bench", 16, longest=30)


def test_fillers_are_documents_and_chats_but_no_question() -> None:
    first = filler_prompts(4, [])
    assert len(first) == 4 and first[0].startswith("Summarize") and len(first[1]) > 1000
    assert filler_prompts(3, [first[0]])[0] == first[1]


def test_prompts_leave_room_for_the_response_and_two_trees() -> None:
    options = Options(serving(), lengths=(256, 2048), max_tokens=100)
    # Of the largest tree, 4 beams of 4, with its root: 17 tokens.
    assert prompt_lengths(options, 2048) == {256: 256, 2048: 2048 - 100 - 2 * 17}
    with pytest.raises(ValueError, match="no room for a response of 100"):
        prompt_lengths(options, 120)


def test_figures_are_relative_to_the_shortest() -> None:
    tree = DraftingConfig(1, 2)
    prompts = {8: [[0] * 8, [0] * 6], 16: [[0] * 16, [0] * 16]}
    short, long = rows_of(tree, prompts, {8: [[1, 3, 1], [1, 2]], 16: [[1, 2, 1], [1, 2, 2, 1, 1]]}, served=False)
    assert (short["prompt_tokens"], short["tokens_per_step"], short["relative"]) == (7.0, 2.0, 1.0)
    assert (long["tokens_per_step"], long["relative"], long["steps"]) == (9 / 6, 0.75, 6)
    assert long["acceptance_by_depth"] == [3 / 6, 0.0]
    assert below({"results": [short, long]}) == [long]
    assert below({"results": [short, long | {"relative": 0.95}]}) == []


def test_the_standard_error_is_that_of_a_ratio() -> None:
    # Tokens 4 and 2 in 1 step each: ratio 3, residuals 1 and -1, two steps.
    assert standard_error([[1, 4], [1, 2]]) == pytest.approx(2**0.5 / 2)
    assert standard_error([[1, 2, 2], [1, 2]]) == 0.0


def report(relative: float) -> dict[str, Any]:
    common = {"tree": "4x4, 16 nodes", "standard_error": 0.01, "steps": 9, "acceptance_by_depth": [0.5]}
    values = [(256, 250.0, 2.0, False, 1.0), (8192, 7800.0, 2.0 * relative, False, relative)]
    keys = ("length", "prompt_tokens", "tokens_per_step", "served", "relative")
    return {
        "config": {"questions": 2, "prompts": "mt-bench", "max_tokens": 8, "check": True},
        "results": [common | dict(zip(keys, row, strict=True)) for row in values],
    }


def test_table_and_files(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=StringIO())
    context_length.show(report(0.5), console)
    assert "8192 tokens: 50.0% of the value at the shortest context, less than 95%" in console.export_text()
    written = context_length.store(report(0.5), tmp_path / "x.json")
    assert [path.name for path in written] == ["x.md", "x.png"] and all(path.stat().st_size for path in written)
    assert "| 8192 | 7800 | 4x4, 16 nodes | simulated | 1.00 | 0.01 | 50.0% | 0.50 |" in written[0].read_text()


def test_options_from_the_command_line() -> None:
    parsed = parse_args(["--target", str(ASSET), "--lengths", "64", "128", "--max-tokens", "32", "--served"])
    assert parsed.serving.window == 128 + 32 and parsed.serving.trees == (
        DraftingConfig(4, 4, 16, adaptive=False, prompt_lookup=False),
    )
    assert parsed.served and not parsed.check


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lengths", "128", "64"], "lengths must be positive and rise"),
        (["--questions", "0"], "questions must be"),
        (["--max-tokens", "1"], "max_tokens must be"),
    ],
)
def test_impossible_options_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--target", str(ASSET), *flags])
    assert message in capsys.readouterr().err
