# SPDX-License-Identifier: Apache-2.0
"""The command that lets a target write prompts: what it stores, and what a second start makes of that."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from redrafter_training.invent import main
from redrafter_training.responses import invention
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.run import prompt_invention
from redrafter_training.run.prompt_invention import facts_file
from tests.models import save_random_llama
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer(CHATML)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


class Numbered:
    """Writes prompts that name their seed; stops as a kill would at batch number `last`."""

    def __init__(self, last: int = 1000) -> None:
        self.batches, self.last = 0, last

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.batches += 1
        if self.batches > self.last:
            raise KeyboardInterrupt
        return [
            Completion(
                (*TOKENIZER(f"What is {request.seed % 10**6}?", add_special_tokens=False)["input_ids"], END), True
            )
            for request in requests
        ]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(invention, "BATCH", 8)
    path = tmp_path / "target"
    save_random_llama(path, vocab_size=len(TOKENIZER))
    TOKENIZER.save_pretrained(path)
    return path


def invent(target: Path, out: Path, engine: Numbered, monkeypatch: pytest.MonkeyPatch, *further: str) -> int:
    monkeypatch.setattr(prompt_invention, "make_engine", lambda *args, **options: engine)
    return main(["--target", str(target), "--out", str(out), "--count", "20", *further])


def test_prompts_and_what_became_of_the_others(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts.jsonl"
    assert invent(target, out, Numbered(), monkeypatch) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["prompt"] for line in lines}) == 20 and lines[0]["prompt"].startswith("What is ")
    assert [line["index"] for line in lines] == list(range(20))
    facts = json.loads(facts_file(out).read_text())
    assert (facts["kept"], facts["sampled"], facts["rejected"]) == (20, 24, {})
    assert facts["settings"]["temperature"] == 1.0 and "weights" in facts["settings"]["target_content"]
    shown = capsys.readouterr().out
    assert "4  left out: more than --count in the last batch" in shown
    assert "20  kept" in shown and f"redrafter respond --target {target} --data {out}" in shown


def test_a_second_start_continues_the_file(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert invent(target, whole, Numbered(), monkeypatch) == 0
    assert invent(target, parts, Numbered(last=1), monkeypatch) == 130
    assert len(parts.read_text().splitlines()) == 8
    with parts.open("a") as file:  # as after a kill between the writes of the prompts and of the facts
        file.write(whole.read_text().splitlines(keepends=True)[8])
    again = Numbered()
    assert invent(target, parts, again, monkeypatch) == 0
    assert again.batches == 2 and parts.read_text() == whole.read_text()
    nothing = Numbered(last=0)
    assert invent(target, parts, nothing, monkeypatch) == 0 and nothing.batches == 0


def test_other_settings_and_other_files_are_refused(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts.jsonl"
    assert invent(target, out, Numbered(), monkeypatch) == 0
    before = out.read_text()
    assert invent(target, out, Numbered(), monkeypatch, "--seed", "3") == 1
    assert "sampled with other settings (seed" in capsys.readouterr().err
    assert invent(target, out, Numbered(), monkeypatch, "--openings", "general") == 1
    assert "sampled with other settings (openings" in capsys.readouterr().err
    assert "openings" not in json.loads(facts_file(out).read_text())["settings"], "as in files of before"
    assert invent(target, out, Numbered(), monkeypatch, "--openings", str(tmp_path / "none.txt")) == 1
    assert "neither general nor a readable file" in capsys.readouterr().err
    assert out.read_text() == before
    out.write_text("my notes\n")
    assert invent(target, out, Numbered(), monkeypatch) == 1
    assert "holds something else than invented prompts" in capsys.readouterr().err
    assert out.read_text() == "my notes\n"


def test_two_commands_do_not_write_to_one_file(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "prompts.jsonl"
    codes: list[int] = []

    class Meanwhile(Numbered):
        def __call__(self, requests: Sequence[Request]) -> list[Completion]:
            if not codes:
                codes.append(invent(target, out, Numbered(), monkeypatch))
            return super().__call__(requests)

    assert invent(target, out, Meanwhile(), monkeypatch) == 0
    assert codes == [1]
    assert f"{out} is in use by another command (process {os.getpid()} on" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 20


def test_a_target_that_invents_nothing(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(Numbered):
        def __call__(self, requests: Sequence[Request]) -> list[Completion]:
            return [Completion((END,), True) for _ in requests]

    assert invent(target, tmp_path / "prompts.jsonl", Silent(), monkeypatch) == 0
    assert "0 of 20 prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0"], "temperature must be finite and above 0"),
        (["--count", "0"], "count and max_prompt must be at least 1"),
        (["--max-prompt", "100000"], "--max-prompt"),
    ],
)
def test_mistakes(
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    try:
        code: object = invent(target, tmp_path / "prompts.jsonl", Numbered(), monkeypatch, *flags)
    except SystemExit as end:
        code = end.code
    assert code == (1 if message.startswith("--") else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "prompts.jsonl").exists()
