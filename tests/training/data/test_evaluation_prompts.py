# SPDX-License-Identifier: Apache-2.0
"""What drafters are measured on is not trained on, whichever way the data comes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.report import DataError, Reason
from redrafter_training.distributed.context import LocalContext
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.examples import EVALUATION, folder_responses, load_responses
from redrafter_training.responses.prompts import load_tasks
from redrafter_training.run.data_summary import describe_data
from redrafter_training.run.feed import open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_vllm.prompt_sets import SETS, load_prompts
from tests.training.chat_tokenizers import CHATML, byte_tokenizer
from tests.training.responses.stored import task_result, write_store

FIRST, SECOND = load_prompts("mt-bench")[0].turns
TRANSLATE = next(prompt for prompt in load_prompts("spec-bench") if prompt.category == "translation").turns[0]


def chat(*said: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]}


ORDINARY = [chat(f"question {n}?", f"answer {n}") for n in range(30)]
PLANTED = [
    chat(FIRST, "An answer."),
    chat("Hello!", "Hi.", f"  {SECOND.upper()} ", "Done."),
    chat(f"Please help me: {TRANSLATE} Thank you.", "Yes."),
    chat(FIRST[:60], "What?"),
]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "data.jsonl", [*ORDINARY[:15], *PLANTED, *ORDINARY[15:]])


def test_conversations_that_ask_them_are_left_out_and_counted(data: str, tmp_path: Path) -> None:
    loaded, report = load_conversations([data])
    assert [c.turns[0].content for c in loaded] == [f"question {n}?" for n in range(30)]
    assert report.counts == {Reason.EVALUATION: 4} and report.examples[Reason.EVALUATION][0].where == "data.jsonl:16"
    assert "4  skipped: holds a prompt of MT-Bench or Spec-Bench (--evaluation-prompts keep" in str(report)
    assert len(load_conversations([data], keep_evaluation=True)[0]) == 34
    # The target's answers may say anything.
    assert len(load_conversations([write(tmp_path / "told.jsonl", [chat("Say something.", FIRST)])])[0]) == 1
    texts = write(tmp_path / "texts.jsonl", [{"text": f"Chapter 1. {FIRST} The end."}, {"text": "Chapter 2."}])
    assert [c.text for c in load_conversations([texts])[0]] == ["Chapter 2."]


def test_they_are_not_answered(data: str) -> None:
    job = ResponseJob(target="t", data=data, out=Path("out"), window=400, min_prompt=4, max_prompt=20)
    tokenizer = byte_tokenizer(CHATML)
    tasks, report = load_tasks(job, tokenizer)
    assert len(tasks) == 30 and report.counts == {Reason.EVALUATION: 4}
    keeping = replace(job, evaluation_prompts="keep")
    assert len(load_tasks(keeping, tokenizer)[0]) == 34
    assert keeping.identity() != job.identity() and "evaluation_prompts" not in job.identity()


@pytest.mark.parametrize("name", SETS)
def test_a_set_as_the_data_itself_needs_the_key(name: str, tmp_path: Path) -> None:
    prompts = load_prompts(name)
    path = write(tmp_path / "prompts.jsonl", [{"turns": prompt.turns} for prompt in prompts])
    job = ResponseJob(target="t", data=path, out=Path("out"))
    tokenizer = byte_tokenizer(CHATML)
    with pytest.raises(DataError, match=r"none of the .* can be used(.|\n)*--evaluation-prompts keep"):
        load_tasks(job, tokenizer)
    assert load_tasks(replace(job, evaluation_prompts="keep", duplicates="keep"), tokenizer)[1].used == len(prompts)


def test_responses_to_them_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exchanges = [("ask 0", "tell 0"), (FIRST, "told"), ("ask 2", "tell 2"), ("ask 3", "tell 3"), (SECOND, "too")]
    results = [task_result(n, [exchange]) for n, exchange in enumerate(exchanges)]
    folder = write_store(tmp_path / "folder", [*results, task_result(5, [("hello", "hi"), (f" {FIRST}", "so")])]).folder
    tokenizer = byte_tokenizer()
    loaded = load_responses(folder, tokenizer, 1000, 0)
    assert {example.where for example in [*loaded.training, *loaded.held_out]} <= {"w0", "w2", "w3"}
    assert loaded.facts["skipped"] == 3 and f"left out: 3 {EVALUATION}" in capsys.readouterr().out
    kept = load_responses(folder, tokenizer, 1000, 0, keep_evaluation=True)
    assert len(kept.training) + len(kept.held_out) == 7  # the stored conversation of two prompts is two examples
    config = DistillConfig(Budget(1)).responses
    config = replace(config, folders=(str(folder),))
    assert len(folder_responses(config, tokenizer, 1000)) == len(loaded.training)
    assert len(folder_responses(config, tokenizer, 1000, keep_evaluation=True)) == len(kept.training)


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_training_reads(data: str, keep: bool, tmp_path: Path) -> None:
    config = DistillConfig(Budget(1), beam_length=2, window=500, batch_size=4, response_fraction=0.0, packing=False)
    settings = FeedSettings(data, None, config, tmp_path, 8, keep_evaluation=keep)
    tokenizer = byte_tokenizer(CHATML)
    feed = open_feed(settings, None, tokenizer, LocalContext())  # type: ignore[arg-type]
    assert (feed.facts["used"], feed.facts["skipped"]) == ((34, 0) if keep else (30, 4))
    read = ""
    for _, batch in zip(range(12), feed.batches, strict=False):
        read += "".join(map(tokenizer.decode, batch.tokens.tolist()))
    read += "".join(map(tokenizer.decode, [*feed.held_out.tokens.tolist(), *feed.prompts]))
    assert "question 7?" in read and (FIRST in read) == keep
    evaluation_prompts: Any = "keep" if keep else "drop"
    job = Job("t", data, evaluation_prompts=evaluation_prompts)
    assert ("4 records cannot be used" in describe_data(job, config)) == (not keep)
    assert ("evaluation_prompts" in job.identity(config)) == keep  # checkpoints of earlier versions lack it
