# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import Conversation, Turn
from redrafter_training.data.report import DataError, Reason, UnusableRecord
from tests.training.chat_tokenizers import (
    CHATML,
    HEADINGS,
    NO_SYSTEM,
    OPEN_THOUGHT,
    QWEN_LIKE,
    R1_LIKE,
    RENAMED,
    SHOUTING,
    THINKING,
    byte_tokenizer,
)


def chat(*contents: str, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if number % 2 else "user", content) for number, content in enumerate(contents)]
    return Conversation("here", tuple(turns if system is None else [Turn("system", system), *turns]))


def answers(template: str, conversation: Conversation) -> list[str]:
    (rendered,) = resolve_chat_template(byte_tokenizer(template)).render(conversation)
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_spans_include_the_closing_token() -> None:
    assert answers(CHATML, chat("Hi", "Yes", "So?", "No")) == ["Yes<|im_end|>", "No<|im_end|>"]


def test_an_unanswered_prompt_at_the_end_is_left_out() -> None:
    (rendered,) = resolve_chat_template(byte_tokenizer(CHATML)).render(chat("Hi", "Yes", "So?"))
    assert rendered.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"


def test_text_inserted_by_the_template_is_not_in_the_spans() -> None:
    assert answers(THINKING, chat("Hi", "Yes", "So?", "No")) == ["Yes<|im_end|>", "No<|im_end|>"]
    # The answer is a word of the template's own text in front of it.
    assert answers(THINKING, chat("Hi", "think", "So?", "i")) == ["think<|im_end|>", "i<|im_end|>"]
    assert answers(HEADINGS, chat("Hi", "assistant", "So?", "s")) == ["assistant", "s"]


def test_templates_that_trim() -> None:
    assert answers(HEADINGS, chat("Hi", "\n Yes \n", "So?", "No")) == ["Yes", "No"]


def test_spans_of_identical_turns() -> None:
    assert answers(CHATML, chat("a", "a", "a", "a")) == ["a<|im_end|>", "a<|im_end|>"]


def test_a_conversation_that_the_template_refuses_is_unusable() -> None:
    template = resolve_chat_template(byte_tokenizer(NO_SYSTEM))
    with pytest.raises(UnusableRecord, match="no system turns here") as caught:
        template.render(chat("Hi", "Yes", system="Be kind."))
    assert caught.value.reason == Reason.REFUSED_BY_TEMPLATE


def shown(template: str, conversation: Conversation, **options: object) -> list[tuple[str, list[str]]]:
    """Each rendered text of the conversation, and the assistant's spans in it."""
    rendered = resolve_chat_template(byte_tokenizer(template), options=options).render(conversation)
    return [(r.text, [r.text[start:end] for start, end in r.spans]) for r in rendered]


USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
THOUGHTFUL = chat("Is it?", "<think>\nhm\n</think>\n\nIt is.", "And?", "<think>\nso\n</think>\n\nIt was.")
FIRST = f"{USER}Is it?{END}\n{ASSISTANT}"
SECOND = f"{FIRST}It is.{END}\n{USER}And?{END}\n{ASSISTANT}"  # the prompt of the second answer lacks the first thought


def test_a_template_that_drops_earlier_thoughts() -> None:
    first, second = "<think>\nhm\n</think>\n\nIt is.<|im_end|>", "<think>\nso\n</think>\n\nIt was.<|im_end|>"
    assert shown(QWEN_LIKE, THOUGHTFUL) == [(f"{FIRST}{first}\n", [first]), (f"{SECOND}{second}\n", [second])]
    assert [answers for _, answers in shown(QWEN_LIKE, chat(*(t.content for t in THOUGHTFUL.turns[:2])))] == [[first]]


def test_white_space_around_a_thought_follows_the_template() -> None:
    (said,) = shown(QWEN_LIKE, chat("Is it?", "<think>hm</think>It is."))
    assert said[1] == ["<think>\nhm\n</think>\n\nIt is.<|im_end|>"]


def test_answers_without_thoughts_if_the_template_adds_empty_ones() -> None:
    plain = chat("Is it?", "It is.", "And?", "It was.")
    # As served with thinking, the prompt has no empty thought: it stays in the text and is nobody's.
    (whole,) = shown(QWEN_LIKE, plain)
    assert whole == (f"{SECOND}<think>\n\n</think>\n\nIt was.{END}\n", ["It is.<|im_end|>", "It was.<|im_end|>"])
    # Without thinking each prompt ends in one, which is gone from the answers before.
    empty = "<think>\n\n</think>\n\n"
    assert shown(QWEN_LIKE, plain, enable_thinking=False) == [
        (f"{FIRST}{empty}It is.{END}\n", ["It is.<|im_end|>"]),
        (f"{SECOND}{empty}It was.{END}\n", ["It was.<|im_end|>"]),
    ]
    # Thoughts of the data are not what the target says then.
    assert shown(QWEN_LIKE, THOUGHTFUL, enable_thinking=False) == [
        (f"{FIRST}{empty}It is.{END}\n", ["It is.<|im_end|>"]),
        (f"{SECOND}{empty}It was.{END}\n", ["It was.<|im_end|>"]),
    ]


def test_an_answer_with_a_thought_and_one_without() -> None:
    mixed = chat("Is it?", "<think>\nhm\n</think>\n\nIt is.", "And?", "It was.")
    assert [answers for _, answers in shown(QWEN_LIKE, mixed)] == [
        ["<think>\nhm\n</think>\n\nIt is.<|im_end|>"],
        ["It was.<|im_end|>"],
    ]


def test_an_empty_thought_in_the_data_is_in_the_span() -> None:
    (said,) = shown(QWEN_LIKE, chat("Is it?", "<think>\n\n</think>\n\nIt is."))
    assert said[1] == ["<think>\n\n</think>\n\nIt is.<|im_end|>"]


def test_a_template_that_drops_all_thoughts() -> None:
    first, second = "<think>\nhm\n</think>\n\nIt is.</s>", "<think>\nso\n</think>\n\nIt was.</s>"
    after = "Is it?<|im_start|>\n\nIt is.</s>And?<|im_start|>"
    assert shown(R1_LIKE, THOUGHTFUL) == [(f"Is it?<|im_start|>{first}", [first]), (f"{after}{second}", [second])]
    assert shown(R1_LIKE, chat("Hi", "Yes", "So?", "No")) == [
        ("Hi<|im_start|>Yes</s>So?<|im_start|>No</s>", ["Yes</s>", "No</s>"])
    ]


@pytest.mark.parametrize("opening", ["<think>\n", ""])  # what engines return lacks what the prompt has said
def test_a_prompt_that_begins_the_thought(opening: str) -> None:
    said = "hm\n</think>\n\nIt is."
    assert shown(R1_LIKE, chat("Is it?", f"{opening}{said}"), opens=True) == [
        (f"Is it?<|im_start|><think>\n{said}</s>", [f"{said}</s>"])
    ]
    assert shown(OPEN_THOUGHT, chat("Is it?", f"<think>\n{said}")) == [
        (f"{FIRST}<think>\n{said}{END}\n", [f"{said}<|im_end|>"])
    ]


def test_an_answer_without_the_thought_that_its_prompt_begins() -> None:
    template = resolve_chat_template(byte_tokenizer(OPEN_THOUGHT))
    with pytest.raises(UnusableRecord, match=r"turn 1 has no thought, but its prompt begins one") as caught:
        template.render(chat("Hi", "Yes"))
    assert caught.value.reason == Reason.TEMPLATE_MISMATCH


def test_an_answer_closed_by_the_next_user_turn() -> None:
    # As GLM's with thinking off: the prompt has an empty thought and the template a line break behind it.
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '</s>' + m['content'] }}{% else %}"
        "{{ '<|im_start|><think></think>\n' + m['content'].split('</think>')[-1].strip() }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|><think></think>' }}{% endif %}"
    )
    begins = "</s>Is it?<|im_start|><think></think>\nIt is.</s>And?<|im_start|><think></think>\nIt was."
    assert shown(template, THOUGHTFUL) == [(begins, ["\nIt is.</s>", "\nIt was."])]


def test_think_tags_in_a_user_turn() -> None:
    conversation = chat("What is </think>?", "<think>\nhm\n</think>\n\nA mark.")
    (said,) = shown(QWEN_LIKE, conversation)
    assert said[1] == ["<think>\nhm\n</think>\n\nA mark.<|im_end|>"]


@pytest.mark.parametrize("pad", ["</s>", "<|im_end|>", "<pad>"])
def test_the_end_of_turn_carries_loss_even_if_it_is_the_padding_token(pad: str) -> None:
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.pad_token = pad
    (rendered,) = resolve_chat_template(tokenizer).render(chat("Hi", "Yes"))
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["Yes<|im_end|>"]


def test_a_template_whose_prompts_name_another_role() -> None:
    with pytest.raises(DataError, match=r"(?s)prompt for turn 1 ends in .*helper"):
        resolve_chat_template(byte_tokenizer(RENAMED))


def test_a_template_that_changes_answers() -> None:
    with pytest.raises(DataError, match="changes the text of answers"):
        resolve_chat_template(byte_tokenizer(SHOUTING))


def test_a_tokenizer_without_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "org/base"
    with pytest.raises(DataError, match=r"org/base has no chat template; set chat_template.*'vicuna'"):
        resolve_chat_template(tokenizer)


def test_a_template_from_a_file_overrides_the_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    template = resolve_chat_template(byte_tokenizer(SHOUTING), str(path))
    assert template.render(chat("Hi", "Yes"))[0].text.endswith("assistant\nYes<|im_end|>\n")
    with pytest.raises(DataError, match="neither 'vicuna' nor a readable file"):
        resolve_chat_template(byte_tokenizer(), str(tmp_path / "absent.jinja"))


def test_options_reach_the_template() -> None:
    tokenizer = byte_tokenizer("{% if loud %}{{ raise_exception('too loud') }}{% endif %}" + CHATML)
    assert resolve_chat_template(tokenizer).render(chat("Hi", "Yes"))[0].spans
    with pytest.raises(DataError, match="too loud"):
        resolve_chat_template(tokenizer, options={"loud": True})


def test_vicuna_template_text() -> None:
    template = resolve_chat_template(byte_tokenizer(), "vicuna")
    (rendered,) = template.render(chat("Hi ", " Yes", "So?", "No"))
    assert rendered.text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT: Yes</s>USER: So? ASSISTANT: No</s>"
    )
    assert [rendered.text[start:end] for start, end in rendered.spans] == [" Yes</s>", " No</s>"]
    assert template.render(chat("Hi", "Yes", system="Be kind."))[0].text == "Be kind. USER: Hi ASSISTANT: Yes</s>"
    assert template.prompt((Turn("system", "Be kind."), Turn("user", "Hi"))) == "Be kind. USER: Hi ASSISTANT:"


def test_vicuna_template_needs_eos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="ends answers with EOS"):
        resolve_chat_template(tokenizer, "vicuna")
