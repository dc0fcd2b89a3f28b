# SPDX-License-Identifier: Apache-2.0
"""ResponseJob without an engine: prompts, turns, shards, and what the training reads."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from redrafter_training.cli import attribute_help, parse_keys
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.conversations import Turn
from redrafter_training.data.python_corpus import load_corpus
from redrafter_training.data.report import DataError, Reason
from redrafter_training.data.splits import text_key
from redrafter_training.distributed.context import LocalContext
from redrafter_training.respond import cut_shards
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.examples import cut_repetition, examples_of, folder_responses, load_responses
from redrafter_training.responses.generator import Completion, Request, ResponseGenerator, request_seed
from redrafter_training.responses.prompts import fingerprint, load_tasks
from redrafter_training.responses.records import Answer, Task, TaskResult
from redrafter_training.responses.store import (
    ResponseStore,
    StoreError,
    StoreWriteError,
    is_response_folder,
    vocabulary_fingerprint,
)
from redrafter_training.run.feed import FeedSettings, open_feed
from redrafter_training.target.model import TargetModel
from redrafter_training.utils.folder_lock import FolderInUseError
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

JOB = ResponseJob("target", "stdlib", Path("out"), window=100, min_prompt=4, max_prompt=20, temperatures=(0.0, 0.7))
END = 4  # <|im_end|>


def spoken(*contents: str) -> tuple[Turn, ...]:
    """A conversation that the user begins."""
    return tuple(Turn("assistant" if n % 2 else "user", content) for n, content in enumerate(contents))


class Script:
    """Says one prepared thing per request and remembers what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *lines: str) -> None:
        self.tokenizer = tokenizer
        self.lines = list(lines)
        self.asked: list[list[Request]] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append(list(requests))
        made = []
        for request in requests:
            ids = [*self.tokenizer(self.lines.pop(0))["input_ids"], END]
            made.append(Completion(tuple(ids[: request.max_tokens]), len(ids) <= request.max_tokens))
        return made


def test_source_prompts_are_pieces_of_the_right_files(corpus_root: Path) -> None:
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


def test_prompts_that_the_embedding_has_no_row_for() -> None:
    tokenizer = byte_tokenizer(CHATML)
    script = Script(tokenizer, "Alpha", "Beta")
    tasks = [
        Task(0, "piece", False, prompt_ids=(5, 260)),
        Task(1, "asked", False, turns=spoken("<|im_start|>")),
        Task(2, "fine", False, prompt_ids=(5, 6)),
    ]
    texts = ResponseGenerator(replace(JOB, window=200), tokenizer, script, 260)(tasks)
    assert [text.skipped for text in texts] == [Reason.BEYOND_EMBEDDING, None, None]
    assert "and the target's embedding has 260 rows" in texts[0].detail
    (asked,) = script.asked
    assert len(asked) == 2


def test_conversations_that_ask_the_same_are_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the data answers; a held-out prompt ends a conversation that comes to it later."""
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
    assert "60 say the same as another one and are left out" in capsys.readouterr().out
    held = {task.turns[0].content for task in tasks if task.held_out}
    kept, _ = load_tasks(replace(job, duplicates="keep"), tokenizer)
    assert sum(not task.held_out for task in kept) == 2 * (60 - len(held))
    data.write_text("\n".join([*lines, *(record(f"other {n}", "so", f"question {n}", "yes") for n in range(60))]))
    for task in load_tasks(job, tokenizer)[0]:
        asked = [turn.content for turn in task.turns if turn.role == "user"]
        assert task.held_out == (asked[0] in held) or asked[0].startswith("other")
        assert task.held_out or not held.intersection(asked)


def test_prompts_of_plain_texts_stand_in_one_side_alone(tmp_path: Path) -> None:
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


def test_every_turn_is_answered_after_the_answers_before() -> None:
    tokenizer = byte_tokenizer(CHATML)
    script = Script(tokenizer, "Alpha", "Beta", "Gamma")
    tasks = [Task(5, "two", False, turns=spoken("a?", "data's own", "b?")), Task(8, "one", True, turns=spoken("c?"))]
    two, one = ResponseGenerator(replace(JOB, window=200, longest_repeat=9), tokenizer, script)(tasks)
    prompts = [[tokenizer.decode(request.prompt_ids) for request in batch] for batch in script.asked]
    start, reply = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    first = f"{start}a?{reply}"
    assert prompts == [[first, f"{start}c?{reply}"], [f"{first}Alpha<|im_end|>\n{start}b?{reply}"]]
    assert [answer.text for answer in two.answers] == ["Alpha", "Gamma"]
    assert tokenizer.decode(two.answers[0].answer_ids) == "Alpha<|im_end|>"
    assert (two.temperature, one.temperature) == (0.7, 0.0)  # 5 and 8 of two temperatures in turn
    assert one.held_out and one.answers[0].ended and one.left_out == 0
    seeds = [request.seed for batch in script.asked for request in batch]
    assert seeds == [request_seed(0, 5, 0), request_seed(0, 8, 0), request_seed(0, 5, 1)]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**63 for seed in seeds)
    assert {request.longest_repeat for batch in script.asked for request in batch} == {9}


def test_what_cannot_be_answered_is_named() -> None:
    tokenizer = byte_tokenizer(CHATML)
    long = Task(0, "long", False, turns=spoken("x" * 80))  # more than half of 100
    cut = Task(1, "cut", False, turns=spoken("a?", "", "b?", "", "c?"))
    mute = Task(2, "mute", False, turns=spoken("a?", "", "b?"))
    texts = ResponseGenerator(JOB, tokenizer, Script(tokenizer, "y" * 90, "  "))([long, cut, mute])
    assert [text.skipped for text in texts] == [Reason.PROMPT_TOO_LONG, None, None]
    assert "most 50" in texts[0].detail
    assert [len(text.answers) for text in texts] == [0, 1, 1]
    assert [text.left_out for text in texts] == [0, 2, 1]
    answer = texts[1].answers[0]
    assert not answer.ended
    assert len(answer.prompt_ids) + len(answer.answer_ids) == 100


def answered(index: int, answers: Sequence[tuple[str, str]] = (("ask", "tell"),), held_out: bool = False) -> TaskResult:
    said = tuple(Answer(tuple(ask.encode()), tuple(answer.encode()), answer, True) for ask, answer in answers)
    return TaskResult(index, f"w{index}", held_out, 0.5, said, prompts=tuple(text_key(ask) for ask, _ in answers))


def test_examples_by_hand() -> None:
    (joined,) = examples_of(answered(0, (("ab", "cd"), ("abcdef", "g"))))
    assert bytes(joined.tokens.tolist()) == b"abcdefg"
    assert joined.loss.int().tolist() == [0, 0, 1, 1, 0, 0, 1]
    # The second prompt spells the first answer differently: each keeps its own tokens.
    apart = list(examples_of(answered(0, (("ab", "cd"), ("abXdef", "g")))))
    assert [bytes(example.tokens.tolist()) for example in apart] == [b"abcd", b"abXdefg"]
    assert [example.loss.int().tolist() for example in apart] == [[0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1]]


def test_texts_end_where_an_answer_begins_to_repeat_itself(tmp_path: Path) -> None:
    repeats = answered(0, (("abab", "cdcdcd"),))  # the prompt may repeat itself
    later = answered(1, (("ab", "cd"), ("abcdef", "ghgh"), ("abcdefghghi", "j")))
    fine = answered(2, (("ab", "cdeab"),))  # says again what the prompt has said
    assert cut_repetition(repeats, 2)[0].answers[0].answer_ids == tuple(b"cd")
    cut, looped = cut_repetition(later, 2)
    assert looped and [bytes(answer.answer_ids) for answer in cut.answers] == [b"cd", b"gh"]
    assert cut_repetition(fine, 2) == (fine, False) and cut_repetition(repeats, 0) == (repeats, False)
    store = open_store(tmp_path / "out", [repeats, later, fine], 1)
    store.write(0, [repeats, later, fine])
    texts = load_responses(store.folder, byte_tokenizer(), 20, 2)
    read = {bytes(example.tokens.tolist()) for example in (*texts.training, *texts.held_out)}
    assert read == {b"ababcd", b"abcdefgh", b"abcdeab"}
    assert texts.facts["looping"] == 2


TWO_AND_ONE = (("ab", "cdcdcd"), ("ba", "efghgh"), ("bb", "dddddd"))


def test_the_recipe_says_what_a_loop_is(tmp_path: Path, tiny_target: TargetModel) -> None:
    texts = [answered(n, ((ask, answer),), held_out=n == 2) for n, (ask, answer) in enumerate(TWO_AND_ONE)]
    store = open_store(tmp_path / "out", texts, 1)
    store.write(0, texts)
    for repeat, kept in ((0, [b"abcdcdcd", b"baefghgh"]), (2, [b"abcd", b"baefgh"])):
        responses = ResponseConfig(max_prompt=4, min_prompt=2, folders=(str(store.folder),), longest_repeat=repeat)
        config = DistillConfig(Budget(1), window=12, beam_length=2, batch_size=2, responses=responses, packing=False)
        beside = folder_responses(responses, byte_tokenizer(), config.window)
        assert [bytes(example.tokens.tolist()) for example in beside] == kept
        settings = FeedSettings(str(store.folder), None, config, tmp_path, 4)
        feed = open_feed(settings, tiny_target, byte_tokenizer(), LocalContext())
        rows = next(iter(feed.batches)).tokens
        assert sorted(bytes(row.tolist()).rstrip(b"\0") for row in rows) == kept


def open_store(folder: Path, texts: Sequence[TaskResult], shards: int, seed: int = 1) -> ResponseStore:
    settings = {"target": "t", "seed": seed, "vocabulary": vocabulary_fingerprint(byte_tokenizer())}
    store = ResponseStore(folder)
    store.open(settings, len(texts), shards, {})
    return store


def test_one_command_at_a_time_fills_a_folder(tmp_path: Path) -> None:
    """Another one would clear away the shard that is being written."""
    texts = [answered(0)]
    store = open_store(tmp_path / "out", texts, 1)
    writing = tmp_path / "out" / "shard-00000.jsonl.writing"
    with store.held():
        writing.write_text("half a sh")
        told = r"another command \(process \d+ on .*choose another --out"
        with pytest.raises(FolderInUseError, match=told), ResponseStore(store.folder).held():
            pass
        assert writing.exists()
    with store.held():
        open_store(store.folder, texts, 1)
    assert sorted(path.name for path in store.folder.iterdir()) == ["lock", "regenerated.json"]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"settings": 3}', ""])
def test_a_damaged_manifest_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "regenerated.json").write_text(content)
    with pytest.raises(StoreError, match=r"regenerated\.json"):
        ResponseStore(tmp_path).manifest()


def test_shards_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [answered(0), replace(answered(1, ()), skipped=Reason.EMPTY, detail="\u2028 in it")]
    store = open_store(tmp_path / "out", texts, 2)
    store.write(0, texts)
    assert store.read(0) == texts
    before = (tmp_path / "out" / "shard-00000.jsonl").read_bytes()
    with pytest.raises(DataError, match="1 of 2 shards"):
        list(store.read_all())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreWriteError, match=r"No space left.*intact"):
            store.write(1, texts)
    assert sorted(path.name for path in store.folder.iterdir()) == ["regenerated.json", "shard-00000.jsonl"]
    # What a kill in the middle of writing leaves.
    (store.folder / "shard-00001.jsonl.writing").write_text('{"index": 7')
    again = open_store(store.folder, texts, 2)
    assert again.has(0) and not again.has(1)
    assert not (store.folder / "shard-00001.jsonl.writing").exists()
    again.write(1, [answered(2)])
    assert [text.index for text in again.read_all()] == [0, 1, 2]
    assert (store.folder / "shard-00000.jsonl").read_bytes() == before


def test_folders_that_are_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "out", [], 1)
    with pytest.raises(StoreError, match="seed: 1 -> 2"):
        open_store(tmp_path / "out", [], 1, seed=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(StoreError, match="something else"):
        open_store(tmp_path / "other", [], 1)
    with pytest.raises(StoreError, match="not a folder"):
        open_store(tmp_path / "other" / "thesis.txt", [], 1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_training_reads_answers_only(tmp_path: Path, tiny_target: TargetModel) -> None:
    texts = [answered(n, ((f"{n:02}", f"abcdefgh{n}"),), held_out=n == 9) for n in range(10)]
    store = open_store(tmp_path / "out", texts, 2)
    store.write(0, texts[:4])
    store.write(1, texts[4:])
    assert is_response_folder(str(store.folder)) and not is_response_folder("stdlib")
    config = DistillConfig(Budget(1), window=8, beam_length=2, batch_size=3, response_fraction=0)
    tokenizer = byte_tokenizer()
    settings = FeedSettings(str(store.folder), None, config, tmp_path, 4)
    feed = open_feed(settings, tiny_target, tokenizer, LocalContext())
    seen = torch.cat([batch.tokens for batch in islice(feed.batches, 3)])
    assert sorted(bytes(row[:8].tolist()) for row in seen) == [f"{n:02}abcdef".encode() for n in range(9)]
    assert feed.held_out.loss_mask[0].int().tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    assert bytes(feed.prompts[0].tolist()) == b"09"
    assert (feed.facts["training"], feed.facts["held_out"], feed.facts["truncated"]) == (9, 1, 10)
    with pytest.raises(DataError, match="no text for --window 2"):
        load_responses(store.folder, tokenizer, 2, 0)
    tokenizer.add_tokens(["new"])
    with pytest.raises(DataError, match="other tokens"):
        load_responses(store.folder, tokenizer, 8, 0)


def test_answers_are_divided_by_what_they_say(tmp_path: Path) -> None:
    """Folders of earlier versions, too: there a prompt may stand on both sides."""
    pairs = [(f"{n % 8:02}", f"answer {n}") for n in range(24)] + [("10", "answer 3"), ("11", "answer 4")]
    texts = [answered(n, (pair,), held_out=n == 3) for n, pair in enumerate(pairs)]
    for old in (False, True):
        texts = [replace(text, prompts=() if old else text.prompts) for text in texts]
        store = open_store(tmp_path / str(old), texts, 1)
        store.write(0, texts)
        read = load_responses(store.folder, byte_tokenizer(), 40, 0)
        training, held_out = (
            {bytes(example.tokens.tolist()).decode() for example in part} for part in (read.training, read.held_out)
        )
        # Prompt 03 is held out with all its answers, one of which is trained on after prompt 10.
        assert held_out == {"03answer 11", "03answer 19"}
        assert "10answer 3" in training and not any(text.startswith("03") for text in training)
        assert len(training) == 23 and read.split.unmeasured == 1


def test_answers_written_before_stand_beside_source_code(tmp_path: Path, corpus_root: Path) -> None:
    folders = []
    for name, answer in (("one", "abcdef"), ("two", "ghijkl")):
        texts = [answered(n, ((f"{n:02}", answer if n < 9 else "secret"),), held_out=n == 9) for n in range(10)]
        store = open_store(tmp_path / name, texts, 1)
        store.write(0, texts)
        folders.append(str(store.folder))
    responses = ResponseConfig(min_prompt=2, max_prompt=4, folders=tuple(folders))
    config = DistillConfig(
        Budget(1), window=12, beam_length=2, batch_size=4, response_fraction=0.75, responses=responses
    )
    tokenizer = byte_tokenizer()
    settings = FeedSettings(str(corpus_root), None, config, tmp_path, 4)
    # Nothing is left for a target to write: there is none.
    feed = open_feed(settings, None, tokenizer, LocalContext())  # type: ignore[arg-type]
    batches = list(islice(feed.batches, 4))
    assert [len(batch) for batch in batches] == [4] * 4 and all(batch.loss_mask.all() for batch in batches)
    written = torch.cat([batch.tokens[1:] for batch in batches])
    assert set(written[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert set(bytes(written[:, 1:].flatten().tolist())) == set(
        b"012345678abcdefghijkl"
    )  # both folders, nothing held out
    wide = replace(settings, config=replace(config, window=73))
    with pytest.raises(DataError, match=r"18 texts have 144 tokens, less than two windows of 73: .*--count"):
        open_feed(wide, None, tokenizer, LocalContext())  # type: ignore[arg-type]
    wrong = replace(config, responses=replace(responses, folders=(str(tmp_path / "none"),)))
    with pytest.raises(DataError, match="not a folder of responses"):
        open_feed(replace(settings, config=wrong), None, tokenizer, LocalContext())  # type: ignore[arg-type]


def test_folders_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = DistillConfig(Budget(1), responses=ResponseConfig(folders=("answers",)))
    assert config.absolute().responses.folders == (str(tmp_path / "answers"),)
    assert Job("t", "stdlib").identity(config) == Job("t", "stdlib").identity(config.absolute())


def test_shards_cover_the_tasks_in_order() -> None:
    tasks = [Task(n, str(n), False, prompt_ids=(1,)) for n in range(7)]
    shards = cut_shards(tasks, 3)
    assert [[task.index for task in shard.tasks] for shard in shards] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [shard.number for shard in shards] == [0, 1, 2]


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {entry.name for entry in fields(ResponseJob)} == attribute_help(ResponseJob).keys()
    parse: Callable[[list[str]], ResponseJob] = lambda argv: parse_keys(ResponseJob, "x", "y", argv)  # noqa: E731
    file = tmp_path / "keys.yaml"
    file.write_text("target: t\ndata: stdlib\nout: o\ntemperatures: [0.0, 1.0]\nengine: {max_num_seqs: 4}\n")
    job = parse(["--config", str(file), "--seed", "3"])
    wanted = ResponseJob("t", "stdlib", Path("o"), temperatures=(0.0, 1.0), seed=3, engine={"max_num_seqs": 4})
    assert job == wanted
    # The engine's size and the workers may change between two starts, what is written may not.
    assert job.identity() == replace(wanted, engine={}, num_workers=4).identity()
    assert job.identity() != replace(wanted, engine={"quantization": "fp8"}).identity()
    for wrong in (["--shard-size", "0"], ["--window", "100"], ["--temperatures", "[-1.0]"]):
        with pytest.raises(SystemExit):
            parse(["--config", str(file), *wrong])
    capsys.readouterr()
