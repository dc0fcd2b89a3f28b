# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from tests.training.chat_tokenizers import (
    CHATML,
    HEADINGS,
    NO_SYSTEM,
    OPEN_THOUGHT,
    RENAMED,
    SHOUTING,
    THINKING,
    byte_tokenizer,
)
from training.chat_templates import resolve_chat_template
from training.conversations import Conversation, Turn
from training.data_report import DataError, Reason, UnusableRecord


def chat(*contents: str, system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if number % 2 else "user", content) for number, content in enumerate(contents)]
    return Conversation("here", tuple(turns if system is None else [Turn("system", system), *turns]))


def answers(template: str, conversation: Conversation) -> list[str]:
    rendered = resolve_chat_template(byte_tokenizer(template)).render(conversation)
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_answers_go_to_their_closing_token() -> None:
    assert answers(CHATML, chat("Hi", "Yes", "So?", "No")) == ["Yes<|im_end|>", "No<|im_end|>"]


def test_an_unanswered_question_is_left_off() -> None:
    rendered = resolve_chat_template(byte_tokenizer(CHATML)).render(chat("Hi", "Yes", "So?"))
    assert rendered.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"


def test_what_the_template_says_itself_is_not_the_assistants() -> None:
    assert answers(THINKING, chat("Hi", "Yes", "So?", "No")) == ["Yes<|im_end|>", "No<|im_end|>"]
    # The answer is a word of the template's own text in front of it.
    assert answers(THINKING, chat("Hi", "think", "So?", "i")) == ["think<|im_end|>", "i<|im_end|>"]
    assert answers(HEADINGS, chat("Hi", "assistant", "So?", "s")) == ["assistant", "s"]


def test_templates_that_trim() -> None:
    assert answers(HEADINGS, chat("Hi", "\n Yes \n", "So?", "No")) == ["Yes", "No"]


def test_same_words_everywhere() -> None:
    assert answers(CHATML, chat("a", "a", "a", "a")) == ["a<|im_end|>", "a<|im_end|>"]


def test_one_refused_conversation_is_its_own_problem() -> None:
    template = resolve_chat_template(byte_tokenizer(NO_SYSTEM))
    with pytest.raises(UnusableRecord, match="no system turns here") as caught:
        template.render(chat("Hi", "Yes", system="Be kind."))
    assert caught.value.reason == Reason.REFUSED_BY_TEMPLATE


def test_a_template_whose_prompts_do_not_begin_its_conversations() -> None:
    tokenizer = byte_tokenizer(OPEN_THOUGHT)
    tokenizer.name_or_path = "org/thinker"
    with pytest.raises(
        DataError, match=r"(?s)chat template of org/thinker cannot.*prompt for turn 1 ends in .*<think>"
    ):
        resolve_chat_template(tokenizer)


def test_a_template_whose_prompts_name_another_role() -> None:
    with pytest.raises(DataError, match=r"(?s)prompt for turn 1 ends in .*helper"):
        resolve_chat_template(byte_tokenizer(RENAMED))


def test_a_template_that_changes_answers() -> None:
    with pytest.raises(DataError, match="does not render answers as they are"):
        resolve_chat_template(byte_tokenizer(SHOUTING))


def test_a_tokenizer_without_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "org/base"
    with pytest.raises(DataError, match=r"org/base has no chat template; set chat_template.*'vicuna'"):
        resolve_chat_template(tokenizer)


def test_a_template_from_a_file_goes_before_the_tokenizers_own(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    template = resolve_chat_template(byte_tokenizer(SHOUTING), str(path))
    assert template.render(chat("Hi", "Yes")).text.endswith("assistant\nYes<|im_end|>\n")
    with pytest.raises(DataError, match="neither 'vicuna' nor a readable file"):
        resolve_chat_template(byte_tokenizer(), str(tmp_path / "absent.jinja"))


def test_options_reach_the_template() -> None:
    tokenizer = byte_tokenizer("{% if loud %}{{ raise_exception('too loud') }}{% endif %}" + CHATML)
    assert resolve_chat_template(tokenizer).render(chat("Hi", "Yes")).spans
    with pytest.raises(DataError, match="too loud"):
        resolve_chat_template(tokenizer, options={"loud": True})


def test_vicunas_wording() -> None:
    template = resolve_chat_template(byte_tokenizer(), "vicuna")
    rendered = template.render(chat("Hi ", " Yes", "So?", "No"))
    assert rendered.text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT: Yes</s>USER: So? ASSISTANT: No</s>"
    )
    assert [rendered.text[start:end] for start, end in rendered.spans] == [" Yes</s>", " No</s>"]
    assert template.render(chat("Hi", "Yes", system="Be kind.")).text == "Be kind. USER: Hi ASSISTANT: Yes</s>"
    assert template.prompt((Turn("system", "Be kind."), Turn("user", "Hi"))) == "Be kind. USER: Hi ASSISTANT:"


def test_vicuna_needs_an_end_of_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="ends answers with EOS"):
        resolve_chat_template(tokenizer, "vicuna")
