# SPDX-License-Identifier: Apache-2.0
"""The demonstration's prompts and its streamed answers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.demo.options import parse_args
from benchmarks.demo.progress import working
from benchmarks.demo.prompts import SECOND_TURNS, choose_prompts, last_words, load_tokenizer, second_turns
from benchmarks.demo.serve import ask, ask_all
from redrafter_vllm.prompt_sets import load_prompts
from tests.paths import ASSET

CHAT = SimpleNamespace(chat_template="a template")


def test_a_chat_model_is_asked_questions_of_all_categories() -> None:
    prompts = choose_prompts(CHAT, 8)
    by_text = {prompt.turns[0]: prompt.category for prompt in load_prompts("mt-bench")}
    assert len({by_text[prompt[0]["content"]] for prompt in prompts if not isinstance(prompt, str)}) == 8
    with pytest.raises(ValueError, match="MT-Bench has 80 prompts, not 81"):
        choose_prompts(CHAT, 81)


def test_second_turns_follow_the_answers() -> None:
    prompts = choose_prompts(CHAT, 4)
    further = second_turns(prompts, ["one", "two", "three", "four"])
    assert len(further) == SECOND_TURNS == 2
    turns = next(prompt.turns for prompt in load_prompts("mt-bench"))
    assert further[0] == [
        {"role": "user", "content": turns[0]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": turns[1]},
    ]
    assert last_words(further[0]) == turns[1] + "\n\n"


def test_a_model_without_a_chat_template_continues_texts() -> None:
    prompts = choose_prompts(load_tokenizer(ASSET), 3)
    assert len(prompts) == 3 and all(isinstance(prompt, str) for prompt in prompts)
    assert second_turns(prompts, ["one", "two", "three"]) == []
    assert last_words("text") == "text"


async def streamed(pieces: list[Any]) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


class Client:
    """In place of the OpenAI client: streams pieces as vLLM's server does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        create = SimpleNamespace(create=self._chat)
        self.chat = SimpleNamespace(completions=create)
        self.completions = SimpleNamespace(create=self._text)

    async def _chat(self, **request: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        first = SimpleNamespace(delta=SimpleNamespace(content=""))
        pieces = [
            SimpleNamespace(choices=[first], prompt_token_ids=[1, 2]),
            SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content="Hel"), token_ids=[3])]),
            SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content="lo"), token_ids=[4, 5])]),
            # The end token has no text.
            SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=None), token_ids=[6])]),
            SimpleNamespace(choices=[]),
        ]
        return streamed(pieces)

    async def _text(self, **request: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        pieces = [
            SimpleNamespace(choices=[SimpleNamespace(text="x", token_ids=[7], prompt_token_ids=[1])]),
            SimpleNamespace(choices=[SimpleNamespace(text="yz", token_ids=[8, 9], prompt_token_ids=None)]),
        ]
        return streamed(pieces)


def test_a_chat_is_streamed() -> None:
    client, numbers = Client(), []
    said = [{"role": "user", "content": "Hi"}]
    answer = asyncio.run(ask(client, said, 8, numbers.append, temperature=0.0))  # type: ignore[arg-type]
    assert (answer.prompt_ids, answer.token_ids, answer.text) == ([1, 2], [3, 4, 5, 6], "Hello")
    assert numbers == [0, 1, 2, 1, 0]
    assert client.asked[0]["messages"] == said
    assert (client.asked[0]["stream"], client.asked[0]["temperature"]) == (True, 0.0)


def test_a_text_is_streamed() -> None:
    client = Client()
    answer = asyncio.run(ask(client, "ab", 8, lambda number: None, temperature=0.0))  # type: ignore[arg-type]
    assert (answer.prompt, answer.prompt_ids, answer.token_ids, answer.text) == ("ab", [1], [7, 8, 9], "xyz")


def test_request_i_has_seed_i() -> None:
    client, reports = Client(), []
    options = parse_args(["--temperature", "0.5", "--max-tokens", "9"])
    prompts: list[Any] = ["a", [{"role": "user", "content": "b"}], "c"]
    answers = asyncio.run(ask_all(client, prompts, options, True, reports.append))  # type: ignore[arg-type]
    assert [answer.prompt for answer in answers] == prompts
    asked = {str(request.get("prompt") or request["messages"]): request for request in client.asked}
    assert [asked[str(prompt)]["seed"] for prompt in prompts] == [0, 1, 2]
    assert all(request["temperature"] == 0.5 and request["max_tokens"] == 9 for request in client.asked)
    assert reports[-1].endswith("10 tokens")


def test_in_a_log_each_wait_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, working("starting", Console(file=log)) as report:
        report("1 of 2")
    assert (tmp_path / "log").read_text() == "starting\n"


def test_on_a_terminal_a_wait_shows_how_far_it_is(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        console = Console(file=log, force_terminal=True, width=100)
        with working("starting", console) as report:
            report("1 of 2")
            console.print("")  # draws the line again
    assert "starting: 1 of 2" in (tmp_path / "log").read_text()
