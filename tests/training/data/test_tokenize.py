# SPDX-License-Identifier: Apache-2.0

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from redrafter_training.data.conversations import Conversation, Turn, load_conversations
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord
from redrafter_training.data.tokenize import ExampleEncoder, encode_all, tokens_inside
from redrafter_training.tiny_target.tokenizer import train_tokenizer
from tests.paths import SHARED
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
CHAT = Conversation(
    "here", (Turn("user", "Hi"), Turn("assistant", "Oh é"), Turn("user", "So?"), Turn("assistant", "No"))
)


@pytest.fixture(scope="module")
def vicuna() -> PreTrainedTokenizerBase:
    path = SHARED / "data" / "vicuna-tokenizer"
    if not path.exists():
        pytest.skip("needs ../shared")
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_bytes_of_the_answers_carry_loss(trim_offsets: bool) -> None:
    tokenizer = byte_tokenizer(CHATML, trim_offsets=trim_offsets)
    example = ExampleEncoder(tokenizer, 200).encode(CHAT)[0]
    learned = [tokenizer.decode(example.tokens[i]) for i in range(len(example)) if example.loss_mask[i]]
    # The two bytes of é are two tokens, neither of which is text by itself.
    assert learned == ["O", "h", " ", "\ufffd", "\ufffd", "<|im_end|>", "N", "o", "<|im_end|>"]
    # 8 tokens around a role's name and its content: two special ones and the line breaks.
    prompt = 1 + len("user\nHi") + 1 + len("\n") + 1 + len("assistant\n")
    assert example.loss_mask.nonzero()[0] == prompt
    assert example.loss_mask[-1] and example.cut == 0


def test_truncation_is_counted() -> None:
    tokenizer = byte_tokenizer(CHATML)
    whole = ExampleEncoder(tokenizer, 200).encode(CHAT)[0]
    prompt = int(whole.loss_mask.nonzero()[0])
    example = ExampleEncoder(tokenizer, prompt + 2).encode(CHAT)[0]
    assert example.tokens.tolist() == whole.tokens[: prompt + 2].tolist()
    assert example.loss_mask.tolist() == [False] * prompt + [True] * 2
    assert example.cut == len(whole) - prompt - 2
    with pytest.raises(UnusableRecord) as caught:
        ExampleEncoder(tokenizer, prompt).encode(CHAT)
    assert caught.value.reason == Reason.NOTHING_TO_LEARN


def test_report_of_used_cut_and_skipped_records() -> None:
    tokenizer = byte_tokenizer("{% if 'bad' in messages[0]['content'] %}{{ 1 / 0 }}{% endif %}" + CHATML)
    long = Conversation("long", (Turn("user", "x" * 90), Turn("assistant", "y")))
    cut = Conversation("cut", (Turn("user", "x"), Turn("assistant", "y" * 90)))
    bad = Conversation("bad", (Turn("user", "bad"), Turn("assistant", "y")))
    report = DataReport(used=4)
    examples = encode_all([CHAT, long, bad, cut], ExampleEncoder(tokenizer, 100), report, quiet=True)
    assert [e.where for e in examples] == ["here", "cut"]
    assert (report.used, report.truncated) == (2, 1)
    assert report.counts == {Reason.NOTHING_TO_LEARN: 1, Reason.REFUSED_BY_TEMPLATE: 1}
    # The prompt: two tokens for each of its two turns' ends, "user", "x", "assistant" and the line breaks after them.
    assert report.cut_tokens == (1 + 5 + 1 + 1 + 1 + 1 + 10) + 91 - 100
    with pytest.raises(DataError, match="none of the 1 records"):
        encode_all([long], ExampleEncoder(tokenizer, 100), DataReport(used=1), quiet=True)


def test_raw_text_is_cut_into_pieces_with_loss_everywhere() -> None:
    tokenizer = byte_tokenizer()
    examples = ExampleEncoder(tokenizer, 4).encode(Conversation("here", text="abcdefgh"))
    assert [tokenizer.decode(e.tokens) for e in examples] == ["abcd", "efgh"]
    assert [e.loss_mask.tolist() for e in examples] == [[False, True, True, True]] * 2
    text = ExampleEncoder(tokenizer, 20).encode(Conversation("here", text="ab"))[0]
    assert tokenizer.decode(text.tokens) == "ab</s>"


def test_raw_text_with_a_tokenizer_that_adds_bos() -> None:
    tokenizer = train_tokenizer(["nothing"], 260)
    examples = ExampleEncoder(tokenizer, 4).encode(Conversation("here", text="abcdef"))
    assert [tokenizer.decode(e.tokens) for e in examples] == ["<s>abc", "<s>def", "<s></s>"]
    assert [e.loss_mask.tolist() for e in examples] == [[False, True, True, True]] * 2 + [[False, True]]


def test_text_needs_no_template_and_a_chat_does() -> None:
    encoder = ExampleEncoder(byte_tokenizer(), 100)
    assert encoder.encode(Conversation("here", text="abc"))
    with pytest.raises(DataError, match="has no chat template; set chat_template"):
        encoder.encode(CHAT)


def test_tokens_inside_spans() -> None:
    text = "ab  cd ef"
    offsets = [(0, 0), (0, 2), (3, 3), (4, 6), (6, 8), (8, 9)]
    # The zero-width token and the one after it own the two spaces; the last two tokens straddle the border at 7.
    assert tokens_inside(text, offsets, [(2, 6)]) == [False, False, True, True, False, False]
    assert tokens_inside(text, offsets, [(3, 7), (8, 9)]) == [False, False, False, True, False, True]
    assert tokens_inside(text, offsets, []) == [False] * 6


def test_vicuna_by_hand(vicuna: PreTrainedTokenizerBase) -> None:
    turns = (
        Turn("user", "Who are you?"),
        Turn("assistant", "I am 😀."),
        Turn("user", "Bye"),
        Turn("assistant", "Bye!"),
    )
    example = ExampleEncoder(vicuna, 2048, "vicuna").encode(Conversation("here", turns))[0]
    pieces = vicuna.convert_ids_to_tokens(example.tokens.tolist())
    first = pieces.index(":", pieces.index(":") + 1) + 1
    assert pieces[:3] == ["<s>", "▁A", "▁chat"]
    assert vicuna.decode(example.tokens[1:first]) == f"{PREAMBLE} USER: Who are you? ASSISTANT:"
    answer = ["▁I", "▁am", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", ".", "</s>"]
    question = ["USER", ":", "▁By", "e", "▁A", "SS", "IST", "ANT", ":"]
    assert pieces[first:] == [*answer, *question, "▁By", "e", "!", "</s>"]
    assert example.loss_mask.tolist() == [False] * first + [True] * 9 + [False] * 9 + [True] * 4


def test_sharegpt_sample_with_the_vicuna_template(vicuna: PreTrainedTokenizerBase) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    conversations, report = load_conversations([str(SHARED / "data" / "sharegpt_sample.json")])
    examples = encode_all(conversations, ExampleEncoder(vicuna, 2048, "vicuna"), report, quiet=True)
    assert (report.used, report.skipped, report.truncated) == (500, 0, 0)
    # The tokenizer's own model, without the library around it, puts a space in front of a text by itself.
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(SHARED / "data" / "vicuna-tokenizer" / "tokenizer.model")
    )
    for conversation, example in zip(conversations, examples, strict=True):
        expected = [token for answer in conversation.answers for token in [*model.encode(answer.content.strip()), 2]]
        assert example.tokens[example.loss_mask].tolist() == expected
