# SPDX-License-Identifier: Apache-2.0
"""Plain vLLM's answers to texts and conversations, to compare a server's answers with."""

from typing import Any

from tests.engine.generation import generate, tokens

TEMPLATE = "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}def "

Messages = list[dict[str, str]]


def texts(plain: Any, prompts: list[list[int]], sampling: Any) -> list[str]:
    """Plain vLLM's answers, offline."""
    tokenizer = plain.get_tokenizer()
    return [tokenizer.decode(out[0], skip_special_tokens=True) for out in tokens(generate(plain, prompts, sampling))]


def chat_prompts(plain: Any, conversations: list[Messages]) -> list[list[int]]:
    tokenizer = plain.get_tokenizer()
    return [
        tokenizer.encode(
            tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False), add_special_tokens=False
        )
        for messages in conversations
    ]
