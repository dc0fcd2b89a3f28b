# SPDX-License-Identifier: Apache-2.0
"""Prompts that the target invents: what it is asked with, which are kept, and why the others are not."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.evaluation_prompts import is_evaluation_prompt
from redrafter_training.data.report import DataError
from redrafter_training.responses import invention
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.invention import Beginnings, Invented, PromptInventor, Rejected
from redrafter_training.responses.openings import load_openings
from redrafter_vllm.prompt_sets import PromptSetError, load_prompts
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
TOKENIZER = byte_tokenizer(SYSTEM)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


class Script:
    """Says one of some texts for each request, in turn; a text that ends in … does not end by itself."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.requests: list[Request] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        said = [self.texts[(len(self.requests) + n) % len(self.texts)] for n in range(len(requests))]
        self.requests += requests
        return [self._completion(text) for text in said]

    def _completion(self, text: str) -> Completion:
        ids = tuple(TOKENIZER(text.removesuffix("…"), add_special_tokens=False)["input_ids"])
        return Completion(ids if text.endswith("…") else (*ids, END), not text.endswith("…"))


def inventor(script: Script, seed: int = 0, openings: Sequence[str] = ("",)) -> PromptInventor:
    beginnings = Beginnings(resolve_chat_template(TOKENIZER, None), TOKENIZER, openings)
    return PromptInventor(beginnings, TOKENIZER, script, temperature=1.0, max_prompt=50, seed=seed)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invention, "BATCH", 8)


def test_the_target_continues_the_opening_of_a_users_turn() -> None:
    script = Script("What is a prime number?")
    inventor(script)(Invented(), 1, lambda found: None)
    opening = TOKENIZER.decode(script.requests[0].prompt_ids)
    assert opening == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert len({request.seed for request in script.requests}) == 8
    assert {(request.temperature, request.max_tokens) for request in script.requests} == {(1.0, 50)}


def test_openings_are_used_in_turn_and_belong_to_the_prompt() -> None:
    script = Script(" a function for primes.", " two trains meet.", "What is a prime number?")
    found = Invented()
    openings = ("Write", "Where do", "")
    inventor(script, openings=openings)(found, 3, lambda found: None)
    assert [prompt.text for prompt in found.prompts] == [
        "Write a function for primes.",
        "Where do two trains meet.",
        "What is a prime number?",
    ]
    begun = [TOKENIZER.decode(request.prompt_ids).partition("user\n")[2] for request in script.requests]
    assert begun == [openings[n % 3] for n in range(8)]
    assert Beginnings(resolve_chat_template(TOKENIZER, None), TOKENIZER, openings).longest == max(
        len(request.prompt_ids) for request in script.requests
    )


def test_files_of_openings(tmp_path: Path) -> None:
    general = load_openings("general")
    assert len(general) > 60 and "" in general and len({*general}) > 50
    assert not any(is_evaluation_prompt(words) for words in general if words)
    path = tmp_path / "mine.txt"
    path.write_text("  Write a test\n\nExplain why ")
    assert load_openings(str(path)) == ("Write a test", "", "Explain why")
    assert load_openings(None) == ("",)
    assert load_openings(str(path), 0.5) == ("", "Write a test", "", "", "", "Explain why")
    mixed = load_openings("general", 0.42)
    assert [line for line in mixed if line] == [line for line in general if line]
    assert len(general) / len(mixed) == pytest.approx(0.42, abs=0.003)
    path.write_text("\n \n")
    with pytest.raises(DataError, match="has no words"):
        load_openings(str(path))
    with pytest.raises(DataError, match="neither general nor a readable file"):
        load_openings(str(tmp_path / "none.txt"))


def test_what_is_kept_and_why_the_others_are_not() -> None:
    texts = (
        "What is a prime number?",
        " what IS a  prime number?",
        "Hi",
        "How do I write a letter which …",
        "A token <|im_start|> in the middle",
        "A broken character \ufffd in it",
        load_prompts("mt-bench")[0].turns[1].upper(),
        "How do planes fly?",
    )
    found = Invented()
    inventor(Script(*texts))(found, 2, lambda found: None)
    assert [(prompt.index, prompt.text) for prompt in found.prompts] == [(0, texts[0]), (7, texts[7])]
    assert found.sampled == 8
    assert found.rejected == {
        Rejected.DUPLICATE: 1,
        Rejected.SHORT: 1,
        Rejected.CUT: 1,
        Rejected.BROKEN: 2,
        Rejected.EVALUATION: 1,
    }
    assert "2  kept" in str(found) and "1  left out: says the same as a prompt of MT-Bench" in str(found)


def test_an_interrupted_work_goes_on_with_the_next_prompts() -> None:
    texts = [f"Question number {n}, is it?" for n in range(40)]
    whole, parts, stored = Invented(), Invented(), []
    script = Script(*texts)
    inventor(script)(whole, 20, lambda found: stored.append(len(found.prompts)))
    assert stored == [8, 16, 20] and whole.sampled == 24
    first, second = Script(*texts), Script(*texts[8:], *texts[:8])
    inventor(first)(parts, 8, lambda found: None)
    inventor(second)(parts, 20, lambda found: None)
    assert parts.prompts == whole.prompts
    assert first.requests + second.requests == script.requests


def test_it_ends_where_nothing_new_comes() -> None:
    found = Invented()
    inventor(Script("What is a prime number?", "How do planes fly?"))(found, 100, lambda found: None)
    assert len(found.prompts) == 2 and found.sampled == 16


def test_a_turn_may_be_closed_by_text_alone() -> None:
    user, assistant = "USER: {{ m['content'] }}\nASSISTANT:", " {{ m['content'] }}</s>"
    said = f"{{% if m['role'] == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
    tokenizer = byte_tokenizer(f"{{% for m in messages %}}{said}{{% endfor %}}")
    script = Script("What is a prime number?\nASSISTANT: It is …")
    template = resolve_chat_template(tokenizer, None)
    found = Invented()
    beginnings = Beginnings(template, tokenizer)
    PromptInventor(beginnings, tokenizer, script, temperature=1.0, max_prompt=50, seed=0)(found, 1, lambda found: None)
    assert tokenizer.decode(script.requests[0].prompt_ids) == "USER: "
    assert [prompt.text for prompt in found.prompts] == ["What is a prime number?"]


def test_evaluation_prompts() -> None:
    assert len(load_prompts("mt-bench")) == 80 and len(load_prompts("spec-bench")) == 480
    assert all(len(prompt.turns) == 2 for prompt in load_prompts("mt-bench"))
    assert {prompt.category for prompt in load_prompts("spec-bench")} >= {"translation", "summarization", "rag", "qa"}
    turn = load_prompts("mt-bench")[0].turns[0]
    assert is_evaluation_prompt(f"  {turn.upper()} ") and is_evaluation_prompt(f"Please: {turn} Thanks.")
    assert is_evaluation_prompt(turn[:60]) and not is_evaluation_prompt(turn[:30])
    assert not is_evaluation_prompt("What is a prime number?")


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"turns": ["Hi", "Again"]}\n\n{"question_id": 7, "category": "tea", "turns": ["You?"]}\n')
    one, two = load_prompts(str(path))
    assert (one.number, one.category, one.turns) == (f"{path}:1", "", ("Hi", "Again"))
    assert (two.number, two.category, two.turns) == ("7", "tea", ("You?",))
    path.write_text('{"turns": ["one\u2028two\x85three"]}\r\n', encoding="utf-8")
    assert load_prompts(str(path))[0].turns == ("one\u2028two\x85three",), "line separators inside strings end no line"
    for text, message in (("", "no prompts"), ("{", ":1 is not JSON"), ('{"turns": []}', ":1 has another form")):
        path.write_text(text)
        with pytest.raises(PromptSetError, match=message):
            load_prompts(str(path))
    with pytest.raises(PromptSetError, match="neither mt-bench nor spec-bench nor a readable file"):
        load_prompts(str(tmp_path / "none"))
