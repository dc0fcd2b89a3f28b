# SPDX-License-Identifier: Apache-2.0
"""Folders of responses as training data: with other data, and instead of it."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.report import DataError
from redrafter_training.distributed.context import LocalContext
from redrafter_training.responses.examples import cut_repetition, examples_of, folder_responses, load_responses
from redrafter_training.responses.store import (
    is_response_folder,
)
from redrafter_training.run.feed import open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.target.model import TargetModel
from tests.training.chat_tokenizers import byte_tokenizer
from tests.training.responses.stored import open_store, task_result, write_store


def test_examples_by_hand() -> None:
    (joined,) = examples_of(task_result(0, (("ab", "cd"), ("abcdef", "g"))))
    assert bytes(joined.tokens.tolist()) == b"abcdefg"
    assert joined.loss_mask.int().tolist() == [0, 0, 1, 1, 0, 0, 1]
    # The second prompt has the first response in other tokens: each keeps its own tokens.
    apart = list(examples_of(task_result(0, (("ab", "cd"), ("abXdef", "g")))))
    assert [bytes(example.tokens.tolist()) for example in apart] == [b"abcd", b"abXdefg"]
    assert [example.loss_mask.int().tolist() for example in apart] == [[0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1]]


def test_texts_end_where_a_response_begins_to_repeat_itself(tmp_path: Path) -> None:
    repeats = task_result(0, (("abab", "cdcdcd"),))  # the prompt may repeat itself
    later = task_result(1, (("ab", "cd"), ("abcdef", "ghgh"), ("abcdefghghi", "j")))
    fine = task_result(2, (("ab", "cdeab"),))  # repeats the prompt
    assert cut_repetition(repeats, 2)[0].responses[0].token_ids == tuple(b"cd")
    cut, repeats_itself = cut_repetition(later, 2)
    assert repeats_itself and [bytes(response.token_ids) for response in cut.responses] == [b"cd", b"gh"]
    assert cut_repetition(fine, 2) == (fine, False) and cut_repetition(repeats, 0) == (repeats, False)
    store = write_store(tmp_path / "out", [repeats, later, fine])
    texts = load_responses(store.folder, byte_tokenizer(), 20, 2)
    read = {bytes(example.tokens.tolist()) for example in (*texts.training, *texts.held_out)}
    assert read == {b"ababcd", b"abcdefgh", b"abcdeab"}
    assert texts.facts["looping"] == 2


TWO_AND_ONE = (("ab", "cdcdcd"), ("ba", "efghgh"), ("bb", "dddddd"))


def test_the_recipe_defines_repetition(tmp_path: Path, tiny_target: TargetModel) -> None:
    texts = [task_result(n, ((ask, answer),), held_out=n == 2) for n, (ask, answer) in enumerate(TWO_AND_ONE)]
    store = write_store(tmp_path / "out", texts)
    for repeat, kept in ((0, [b"abcdcdcd", b"baefghgh"]), (2, [b"abcd", b"baefgh"])):
        responses = ResponseConfig(max_prompt=4, min_prompt=2, folders=(str(store.folder),), longest_repeat=repeat)
        config = DistillConfig(Budget(1), window=12, beam_length=2, batch_size=2, responses=responses, packing=False)
        beside = folder_responses(responses, byte_tokenizer(), config.window)
        assert [bytes(example.tokens.tolist()) for example in beside] == kept
        settings = FeedSettings(str(store.folder), None, config, tmp_path, 4)
        feed = open_feed(settings, tiny_target, byte_tokenizer(), LocalContext())
        rows = next(iter(feed.batches)).tokens
        assert sorted(bytes(row.tolist()).rstrip(b"\0") for row in rows) == kept


def test_training_reads_responses_only(tmp_path: Path, tiny_target: TargetModel) -> None:
    texts = [task_result(n, ((f"{n:02}", f"abcdefgh{n}"),), held_out=n == 9) for n in range(10)]
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


def test_texts_of_further_folders_are_added(tmp_path: Path, tiny_target: TargetModel) -> None:
    first = [task_result(n, ((f"{n:02}", f"abc{n}"),), held_out=n == 3) for n in range(4)]
    # One text of the first folder again, and the prompt that is held out there.
    second = [
        task_result(n, ((f"{n:02}", answer),), held_out=n == 12)
        for n, answer in ((0, "abc0"), (3, "other"), (11, "new"), (12, "too"))
    ]
    stores = [write_store(tmp_path / name, texts) for name, texts in (("first", first), ("second", second))]
    responses = ResponseConfig(max_prompt=4, min_prompt=2, folders=(str(stores[1].folder),))
    config = DistillConfig(Budget(1), window=9, beam_length=2, batch_size=4, responses=responses, packing=False)
    settings = FeedSettings(str(stores[0].folder), None, config, tmp_path, 4)
    feed = open_feed(settings, tiny_target, byte_tokenizer(), LocalContext())
    rows = next(iter(feed.batches)).tokens
    assert sorted(bytes(row.tolist()).rstrip(b"\0") for row in rows) == [b"00abc0", b"01abc1", b"02abc2", b"11new"]
    assert {bytes(prompt.tolist()) for prompt in feed.prompts} == {b"03", b"12"}
    assert feed.facts["further"] == [stores[1].manifest()["settings"]]
    elsewhere = replace(config, responses=replace(responses, folders=(str(tmp_path),)))
    with pytest.raises(DataError, match="not a folder of responses"):
        open_feed(replace(settings, config=elsewhere), tiny_target, byte_tokenizer(), LocalContext())


def test_responses_are_divided_by_content(tmp_path: Path) -> None:
    """Folders of earlier versions, too: there a prompt may be on both sides."""
    pairs = [(f"{n % 8:02}", f"answer {n}") for n in range(24)] + [("10", "answer 3"), ("11", "answer 4")]
    texts = [task_result(n, (pair,), held_out=n == 3) for n, pair in enumerate(pairs)]
    for old in (False, True):
        texts = [replace(text, prompts=() if old else text.prompts) for text in texts]
        store = write_store(tmp_path / str(old), texts)
        read = load_responses(store.folder, byte_tokenizer(), 40, 0)
        training, held_out = (
            {bytes(example.tokens.tolist()).decode() for example in part} for part in (read.training, read.held_out)
        )
        # Prompt 03 is held out with all its responses, one of which is trained on after prompt 10.
        assert held_out == {"03answer 11", "03answer 19"}
        assert "10answer 3" in training and not any(text.startswith("03") for text in training)
        assert len(training) == 23 and read.split.unmeasured == 1


@pytest.mark.slow
def test_folders_of_responses_beside_source_code(tmp_path: Path, corpus_root: Path) -> None:
    folders = []
    for name, answer in (("one", "abcdef"), ("two", "ghijkl")):
        texts = [task_result(n, ((f"{n:02}", answer if n < 9 else "secret"),), held_out=n == 9) for n in range(10)]
        store = write_store(tmp_path / name, texts)
        folders.append(str(store.folder))
    responses = ResponseConfig(min_prompt=2, max_prompt=4, folders=tuple(folders))
    config = DistillConfig(
        Budget(1), window=12, beam_length=2, batch_size=4, response_fraction=0.75, responses=responses
    )
    tokenizer = byte_tokenizer()
    settings = FeedSettings(str(corpus_root), None, config, tmp_path, 4)
    # Without a target: nothing is left to generate.
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
