# SPDX-License-Identifier: Apache-2.0
"""Responses generated turn by turn, by an engine with a script."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.conversations import Turn
from redrafter_training.data.report import Reason
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.generator import ResponseGenerator, request_seed
from redrafter_training.responses.records import Task
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

JOB = ResponseJob(
    target="target", data="stdlib", out=Path("out"), window=100, min_prompt=4, max_prompt=20, temperatures=(0.0, 0.7)
)


END = 4  # <|im_end|>


def turns(*contents: str) -> tuple[Turn, ...]:
    """Of a conversation that the user begins."""
    return tuple(Turn("assistant" if n % 2 else "user", content) for n, content in enumerate(contents))


class Script:
    """An engine that completes each request with the next of some lines, and keeps the requests."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *lines: str) -> None:
        self.tokenizer = tokenizer
        self.lines = list(lines)
        self.requests: list[list[Request]] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests.append(list(requests))
        made = []
        for request in requests:
            ids = [*self.tokenizer(self.lines.pop(0))["input_ids"], END]
            made.append(Completion(tuple(ids[: request.max_tokens]), len(ids) <= request.max_tokens))
        return made


def test_every_turn_is_generated_after_the_earlier_responses() -> None:
    tokenizer = byte_tokenizer(CHATML)
    script = Script(tokenizer, "Alpha", "Beta", "Gamma")
    tasks = [Task(5, "two", False, turns=turns("a?", "data's own", "b?")), Task(8, "one", True, turns=turns("c?"))]
    two, one = ResponseGenerator(replace(JOB, window=200, longest_repeat=9), tokenizer, script)(tasks)
    prompts = [[tokenizer.decode(request.prompt_ids) for request in batch] for batch in script.requests]
    start, reply = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    first = f"{start}a?{reply}"
    assert prompts == [[first, f"{start}c?{reply}"], [f"{first}Alpha<|im_end|>\n{start}b?{reply}"]]
    assert [response.text for response in two.responses] == ["Alpha", "Gamma"]
    assert tokenizer.decode(two.responses[0].token_ids) == "Alpha<|im_end|>"
    assert (two.temperature, one.temperature) == (0.7, 0.0)  # 5 and 8 of two temperatures in turn
    assert one.held_out and one.responses[0].ended and one.left_out == 0
    seeds = [request.seed for batch in script.requests for request in batch]
    assert seeds == [request_seed(0, 5, 0), request_seed(0, 8, 0), request_seed(0, 5, 1)]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**63 for seed in seeds)
    assert {request.longest_repeat for batch in script.requests for request in batch} == {9}


def test_prompts_without_a_response_are_counted() -> None:
    tokenizer = byte_tokenizer(CHATML)
    long = Task(0, "long", False, turns=turns("x" * 80))  # more than half of 100
    cut = Task(1, "cut", False, turns=turns("a?", "", "b?", "", "c?"))
    mute = Task(2, "mute", False, turns=turns("a?", "", "b?"))
    texts = ResponseGenerator(JOB, tokenizer, Script(tokenizer, "y" * 90, "  "))([long, cut, mute])
    assert [text.skipped for text in texts] == [Reason.PROMPT_TOO_LONG, None, None]
    assert "most 50" in texts[0].detail
    assert [len(text.responses) for text in texts] == [0, 1, 1]
    assert [text.left_out for text in texts] == [0, 2, 1]
    response = texts[1].responses[0]
    assert not response.ended
    assert len(response.prompt_ids) + len(response.token_ids) == 100


def test_prompts_that_the_embedding_has_no_row_for() -> None:
    tokenizer = byte_tokenizer(CHATML)
    script = Script(tokenizer, "Alpha", "Beta")
    tasks = [
        Task(0, "piece", False, prompt_ids=(5, 260)),
        Task(1, "asked", False, turns=turns("<|im_start|>")),
        Task(2, "fine", False, prompt_ids=(5, 6)),
    ]
    texts = ResponseGenerator(replace(JOB, window=200), tokenizer, script, 260)(tasks)
    assert [text.skipped for text in texts] == [Reason.BEYOND_EMBEDDING, None, None]
    assert "and the target's embedding has 260 rows" in texts[0].detail
    (requests,) = script.requests
    assert len(requests) == 2
