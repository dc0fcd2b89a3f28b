# SPDX-License-Identifier: Apache-2.0
"""Tasks of response generation: stretches of texts and conversations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from redrafter_training.data.python_corpus import load_corpus
from redrafter_training.data.report import DataError
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.prompts import fingerprint, load_tasks
from redrafter_training.responses.records import Task
from redrafter_training.run.response_generation import cut_shards
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

JOB = ResponseJob(
    target="target", data="stdlib", out=Path("out"), window=100, min_prompt=4, max_prompt=20, temperatures=(0.0, 0.7)
)


@pytest.mark.slow
def test_source_prompts_are_stretches_of_the_right_files(corpus_root: Path) -> None:
    tokenizer = byte_tokenizer()
    job = replace(JOB, data=str(corpus_root), count=50, seed=3)
    tasks, report = load_tasks(job, tokenizer)
    assert report.used == len(tasks) == 52
    files = {file.path: file for file in load_corpus(corpus_root)}
    for number, task in enumerate(tasks):
        path, _, start = task.where.partition(" token ")
        assert task.index == number
        assert task.held_out == (number >= 50) == files[path].held_out
        bos, *ids = task.prompt_ids
        assert bos == tokenizer.bos_token_id
        assert 4 <= len(ids) <= 20
        # A token is a byte.
        assert tokenizer.decode(ids).encode() == files[path].text.encode()[int(start) : int(start) + len(ids)]
    assert load_tasks(job, tokenizer)[0] == tasks
    assert fingerprint(tasks) != fingerprint(load_tasks(replace(job, seed=4), tokenizer)[0])


def test_record_prompts(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    data = tmp_path / "records.jsonl"
    records = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(40)]
    data.write_text("\n".join([*map(json.dumps, records), '{"messages": []}']))
    tasks, report = load_tasks(replace(JOB, data=str(data)), tokenizer)
    assert (report.used, report.skipped) == (40, 1)
    trained = sum(not task.held_out for task in tasks)
    assert 34 <= trained < 40  # by their hashes, so about two are held out
    assert [task.held_out for task in tasks] == [False] * trained + [True] * (40 - trained)
    assert sorted(task.turns[0].content for task in tasks) == sorted(f"question {n}" for n in range(40))
    some, _ = load_tasks(replace(JOB, data=str(data), count=10), tokenizer)
    assert [task.held_out for task in some] == [False] * 10 + [True]
    assert {task.turns for task in some[:10]} < {task.turns for task in tasks[:trained]}
    with pytest.raises(DataError, match="chat template"):
        load_tasks(replace(JOB, data=str(data)), byte_tokenizer())
    data.write_text("")
    with pytest.raises(DataError, match="holds no records"):
        load_tasks(replace(JOB, data=str(data)), tokenizer)

    data.write_text("\n".join(json.dumps({"text": letter * 50}) for letter in "ab"))
    tasks, _ = load_tasks(replace(JOB, data=str(data)), tokenizer)
    assert all(4 <= len(task.prompt_ids) <= 20 for task in tasks)
    assert {tokenizer.decode(task.prompt_ids)[:4] for task in tasks} == {"aaaa", "bbbb"}


def test_conversations_with_equal_prompts_are_answered_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever answers the data has; a held-out prompt ends a conversation that has it as a later turn."""
    tokenizer = byte_tokenizer(CHATML)
    data = tmp_path / "records.jsonl"

    def record(*contents: str) -> str:
        sides = ("user", "assistant")
        return json.dumps({"messages": [{"role": sides[n % 2], "content": c} for n, c in enumerate(contents)]})

    lines = [record(f"question {n}", f"answer {n}") for n in range(60)]
    data.write_text("\n".join([*lines, *(record(f" Question {n}", "another") for n in range(60))]))
    job = replace(JOB, data=str(data))
    tasks, _ = load_tasks(job, tokenizer)
    assert len({task.turns[0].content for task in tasks}) == len(tasks) == 60
    assert "60 are equal to another one and are left out" in capsys.readouterr().out
    held = {task.turns[0].content for task in tasks if task.held_out}
    kept, _ = load_tasks(replace(job, duplicates="keep"), tokenizer)
    assert sum(not task.held_out for task in kept) == 2 * (60 - len(held))
    data.write_text("\n".join([*lines, *(record(f"other {n}", "so", f"question {n}", "yes") for n in range(60))]))
    for task in load_tasks(job, tokenizer)[0]:
        prompts = [turn.content for turn in task.turns if turn.role == "user"]
        assert task.held_out == (prompts[0] in held) or prompts[0].startswith("other")
        assert task.held_out or not held.intersection(prompts)


def test_prompts_of_plain_texts_are_in_one_side_alone(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    data = tmp_path / "records.jsonl"
    texts = ["the same beginning of every text " + f"and then {n}, {n * n}, {n * n * n}. " * 3 for n in range(60)]
    data.write_text("\n".join(json.dumps({"text": text}) for text in [*texts, *texts[:5]]))
    tasks, report = load_tasks(replace(JOB, data=str(data), max_prompt=30), tokenizer)
    prompts = [tokenizer.decode(task.prompt_ids) for task in tasks]
    assert len(set(prompts)) == len(prompts) == report.used - 5
    held = {n for task, p in zip(tasks, prompts, strict=True) if task.held_out for n, t in enumerate(texts) if p in t}
    assert 0 < len(held) < 12
    for task, prompt in zip(tasks, prompts, strict=True):
        there = {n for n, text in enumerate(texts) if prompt in text}
        assert there and (there <= held if task.held_out else not there & held)


def test_shards_cover_the_tasks_in_order() -> None:
    tasks = [Task(n, str(n), False, prompt_ids=(1,)) for n in range(7)]
    shards = cut_shards(tasks, 3)
    assert [[task.index for task in shard.tasks] for shard in shards] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [shard.number for shard in shards] == [0, 1, 2]
