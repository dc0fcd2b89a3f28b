# SPDX-License-Identifier: Apache-2.0
"""The split into training and held-out texts: no held-out text occurs in training, whatever the records."""

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from redrafter_training.data.conversations import Conversation, Turn, load_conversations
from redrafter_training.data.division import Divided, divide_examples, first_prompt
from redrafter_training.data.prepare import load_examples
from redrafter_training.data.report import DataError, DataReport
from redrafter_training.data.splits import Content, Split, content_of, divide
from redrafter_training.data.text_keys import text_key
from redrafter_training.data.tokenize import ExampleEncoder, encode_all
from tests.paths import SHARED
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

Chat = Sequence[str]  # what is said in turn, the user first


def conversation(said: Chat) -> Conversation:
    return Conversation("here", tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(said)))


def same(text: str) -> str:
    """Independent implementation of the normalisation."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def split_of(chats: Sequence[Chat], *, keep: bool = False) -> tuple[Split, list[Chat], list[Chat]]:
    """The split, and the turns of training and held-out texts."""
    split = divide([content_of(conversation(chat)) for chat in chats], keep_duplicates=keep)
    training, held_out = (
        [chats[kept.index][: 2 * kept.exchanges] for kept in part] for part in (split.training, split.held_out)
    )
    return split, training, held_out


def turns_of(chats: Sequence[Chat]) -> set[str]:
    return {same(turn) for chat in chats for turn in chat}


def test_text_key_ignores_case_spaces_and_compatibility_forms() -> None:
    assert text_key("  Who\tare \u00a0you?\n") == text_key("who are you?")
    assert text_key("\ufb01ne \uff21") == text_key("fine a")  # a ligature and a wide letter
    assert text_key("STRASSE") == text_key("stra\u00dfe")
    assert len({text_key(text) for text in ("who are you", "who are you?", "whoareyou", "")}) == 4
    assert 0 <= text_key("x") < 1 << 63


def test_content_of_conversations() -> None:
    turns = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    a, b, c = map(text_key, "abc")
    assert content_of(Conversation("w", turns)) == Content(a, ((a, b),))
    assert content_of(Conversation("w", turns), answered=False) == Content(a, ((a,), (c,)))
    assert content_of(Conversation("w", text="a")) == Content(a, ((a,),))


# Few words, so that prompts and answers come again, in other spellings and in the other's role.
WORDS = st.sampled_from(["a", "A ", "b", " b", "c", "C", "d", "e", "\uff45", "f", "g", "h  i", "H I"])
CHATS = st.lists(st.integers(1, 3).flatmap(lambda n: st.lists(WORDS, min_size=2 * n, max_size=2 * n)), max_size=14)
OPEN = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["yes", "no"]))


@given(CHATS, st.booleans())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_held_out_turn_occurs_in_training(chats: list[list[str]], keep: bool) -> None:
    try:
        split, training, held_out = split_of(chats, keep=keep)
    except DataError:
        return
    prompts = {same(chats[index][0]) for index in split.prompts}
    assert training and prompts
    assert not (turns_of(held_out) | prompts) & turns_of(training)
    assert {same(chat[0]) for chat in held_out} <= prompts
    assert split.keys == {text_key(turn) for turn in turns_of(held_out) | prompts}
    if not keep:
        said = [tuple(same(turn) for turn in chat) for chat in training]
        assert len(set(said)) == len(said)


@given(st.lists(OPEN, min_size=2, max_size=200), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_split_does_not_depend_on_the_order(numbers: list[tuple[int, int, str]], rng: random.Random) -> None:
    chats = [[f"question {a}", f"answer {b}", word, word] for a, b, word in numbers]
    try:
        _, training, held_out = split_of(chats)
    except DataError:
        return
    rng.shuffle(chats)
    _, again, held_again = split_of(chats)
    assert turns_of(training) == turns_of(again) and turns_of(held_out) == turns_of(held_again)


def test_added_records_do_not_move_others() -> None:
    chats = [[f"question {n}", f"answer {n}"] for n in range(2000)]
    _, training, held_out = split_of(chats[:1000])
    _, more_training, more_held_out = split_of(chats)
    assert turns_of(training) < turns_of(more_training)
    assert turns_of(held_out) < turns_of(more_held_out)
    assert 60 < len(more_held_out) < 140  # 100 expected, with a deviation of 10


def test_split_of_few_records() -> None:
    for count in range(2, 40):
        _, training, held_out = split_of([[f"q{n}", f"a{n}"] for n in range(count)])
        assert len(training) + len(held_out) == count and held_out and training
    for chats in ([], [["q", "a"]], [["q", "a"], ["Q", "b"], [" q", "c"]]):
        with pytest.raises(DataError, match="too few: one prompt must be held out"):
            split_of(chats)


def test_the_most_frequent_prompt_is_not_held_out() -> None:
    """If it were held out, as one prompt in twenty is, hardly anything would be left for training."""
    for n in range(60):
        chats = [[f"hello {n}", f"answer {k}"] for k in range(30)] + [[f"question {k}", f"it is {k}"] for k in range(5)]
        split, training, _ = split_of(chats)
        assert len(training) >= 30
        assert f"hello {n}" in turns_of(training) and split.groups == 6


def test_of_equal_records_one_is_trained_on() -> None:
    chats = [["q", "a"], ["Q", " A"], ["q", "b"], ["r", "a"], ["s", "c"], ["s", "c"]]
    split, training, held_out = split_of(chats)
    assert split.duplicates == 2 and len(training) + len(held_out) == 4
    assert "2 are equal to another one and are left out" in str(split)
    kept, training, _ = split_of(chats, keep=True)
    assert kept.duplicates == 2 and len(training) >= 4
    assert "and are kept" in str(kept)


def test_with_labels_as_answers_only_prompts_are_held_out() -> None:
    """Both answers occur in training: only prompts are held out, and no training text is given up."""
    split, training, held_out = split_of([[f"is {n} odd?", ("no", "yes")[n % 2]] for n in range(100)])
    assert not held_out and len(split.prompts) + len(training) == 100
    assert "no held-out loss" in str(split)


def test_prompts_that_share_their_answers_are_held_out_together() -> None:
    """Every answer follows several prompts, so that no single prompt has an unseen answer."""
    chats = [[f"{kind} {n}", f"{kind} answer {k}", "bye", "bye"] for kind in "abcdef" for n in range(4) for k in (0, 1)]
    split, training, held_out = split_of(chats)
    kinds = {chat[0][0] for chat in held_out}
    assert len(kinds) == 1 and len(held_out) == 8 and len(training) == 40
    assert all(len(chat) == 2 for chat in held_out)  # before "bye", which is trained on
    assert split.unmeasured == 8 and len(split.prompts) == 4


def test_training_conversations_end_before_held_out_prompts() -> None:
    """A later turn that is a held-out first prompt is not trained on, nor are the turns after it."""
    chats = [[f"question {n}", f"answer {n}"] for n in range(100)]
    held = [chat[0] for chat in split_of(chats)[2]]
    chats += [["another", "answer", prompt, f"other answer {n}"] for n, prompt in enumerate(held)]
    split, training, held_out = split_of(chats)
    assert [chat for chat in training if chat[0] == "another"] == [["another", "answer"]]
    assert split.shared == len(held) and {chat[0] for chat in held_out} == set(held)


def test_marked_texts_are_held_out_instead_of_the_hash() -> None:
    contents = [content_of(conversation([f"q{n % 5}", f"a{n}"])) for n in range(20)]
    split = divide(contents, marked=[3])
    assert {kept.index % 5 for kept in split.held_out} == {3} and len(split.held_out) == 4
    with pytest.raises(DataError, match="nothing is left to train on"):
        divide(contents, marked=range(20))


def encoded(conversations: Sequence[Conversation], window: int) -> Divided:
    encoder = ExampleEncoder(byte_tokenizer(CHATML), window)
    return divide_examples(encode_all(conversations, encoder, DataReport(used=len(conversations)), quiet=True))


def test_examples_are_cut_after_an_answer() -> None:
    chats = [["another", "yes", f"q{n}", f"a{n}"] for n in range(100)] + [[f"q{n}", f"other a{n}"] for n in range(100)]
    divided = encoded([conversation(chat) for chat in chats], 400)
    tokenizer = byte_tokenizer(CHATML)
    held = {tokenizer.decode(first_prompt(example)).splitlines()[1] for example in divided.prompts}
    assert len(held) > 1 and all(re.fullmatch(r"q\d+<\|im_end\|>", prompt) for prompt in held)
    cut = [example for example in divided.training if len(example.ends) == 1 and b"another" in said(example.tokens)]
    # All that are cut say the same, so that one is left.
    assert [tokenizer.decode(example.tokens).count("<|im_start|>") for example in cut] == [2]
    assert cut[0].loss_mask[-1] and divided.split.shared == len(held)
    told = [said(example.tokens) for example in divided.training]
    assert not [prompt for prompt in held if any(prompt.replace("<|im_end|>", "\n").encode() in text for text in told)]


def said(tokens: object) -> bytes:
    return byte_tokenizer().decode(tokens, skip_special_tokens=True).encode()


def test_the_content_of_a_cut_answer_is_its_rest() -> None:
    """Two answers that differ beyond the window are one text."""
    same_start = [conversation([f"q{n // 2}", f"a{n // 2}" + "x" * 60 + str(n)]) for n in range(40)]
    short, whole = encoded(same_start, 60), encoded(same_start, 200)
    assert short.split.duplicates == 20 and whole.split.duplicates == 0


def test_documents_are_held_out_whole() -> None:
    texts = [Conversation(str(n), text=f"document {n}: " + f"{n} and {n}, " * 30) for n in range(40)]
    divided = encoded([*texts, Conversation("copy", text=texts[7].text.upper())], 64)
    training, held_out = ({example.where for example in part} for part in (divided.training, divided.held_out))
    assert training and held_out and not training & held_out
    assert "copy" not in training | held_out or "7" not in training | held_out
    # A single document is divided by its pieces.
    lines = "".join(f"line {n} of it; " for n in range(200))
    pieces = encoded([Conversation("one", text=lines)], 64)
    assert pieces.training and pieces.held_out
    assert not {bytes(e.tokens.tolist()) for e in pieces.training} & {bytes(e.tokens.tolist()) for e in pieces.held_out}
    with pytest.raises(DataError, match="too few"):
        encoded([Conversation("one", text="short")], 64)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize("window", [128, 2048])
def test_split_of_the_sharegpt_sample(window: int) -> None:
    """400 of its 500 conversations share their first prompt with others."""
    source = str(SHARED / "data" / "sharegpt_sample.json")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data" / "vicuna-tokenizer")
    examples, _ = load_examples(None, source, ExampleEncoder(tokenizer, window, "vicuna"), quiet=True)
    divided = divide_examples(examples)
    split = divided.split
    assert split.groups == 52
    records = {
        f"sharegpt_sample.json[{n}]": r["conversations"] for n, r in enumerate(json.loads(Path(source).read_text()))
    }
    chats = {
        part: [[turn["value"] for turn in records[example.where]][: 2 * len(example.ends)] for example in examples]
        for part, examples in (("training", divided.training), ("held out", divided.held_out))
    }
    assert len(chats["held out"]) >= 20 and len(chats["training"]) > 400
    prompts = {records[example.where][0]["value"] for example in divided.prompts}
    assert len(prompts) == len(divided.prompts) > 1
    assert not turns_of(chats["held out"]) & turns_of(chats["training"])
    assert not {same(prompt) for prompt in prompts} & turns_of(chats["training"])
    # The same before anything is tokenised, which is what the plan shows.
    conversations, _ = load_conversations([source])
    assert divide([content_of(c) for c in conversations]).facts()["held_out_prompts"] == len(prompts)
