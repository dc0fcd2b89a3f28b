# SPDX-License-Identifier: Apache-2.0
"""The chat template to train with: the tokenizer's own, Vicuna's, or one from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.rendering import ChatTemplate
from redrafter_training.data.report import DataError
from redrafter_vllm.checkpoint.fingerprint import file_digest
from redrafter_vllm.utils.messages import sentence

VICUNA = "vicuna"
# The wording of Vicuna v1.1, with which the model was tuned up to version 1.5. It has no BOS: the tokenizer adds it, as
# for a prompt given as text.
VICUNA_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set preamble = messages[0]['content'] | trim -%}{%- set spoken = messages[1:] -%}"
    "{%- else -%}"
    "{%- set preamble = 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' -%}"
    "{%- set spoken = messages -%}"
    "{%- endif -%}"
    "{{ preamble + ' ' }}"
    "{%- for message in spoken -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' + (message['content'] | trim) + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + (message['content'] | trim) + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, options: Mapping[str, Any] | None = None
) -> ChatTemplate:
    """The chat template, bound to the tokenizer.

    Args:
        chat_template: None for the tokenizer's own, `vicuna`, or a file of Jinja source.
        options: variables for the template.

    Raises:
        DataError: the tokenizer has no template and none is given, the file is missing, or the template cannot be
            trained with.
    """
    options = dict(options or {})
    label = tokenizer.name_or_path or type(tokenizer).__name__
    if chat_template == VICUNA:
        if not tokenizer.eos_token:
            raise DataError(f"the Vicuna template ends answers with EOS, and the tokenizer of {label} has none")
        return ChatTemplate(tokenizer, "the Vicuna template", VICUNA_TEMPLATE, True, options)
    if chat_template is not None:
        try:
            source = Path(chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"chat_template is neither {VICUNA!r} nor a readable file: {sentence(error)}") from error
        return ChatTemplate(tokenizer, f"the template {chat_template}", source, False, options)
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {label} has no chat template; set chat_template (--chat-template) to {VICUNA!r} for "
            "Vicuna v1.1's, or to a file with a Jinja template"
        )
    return ChatTemplate(tokenizer, f"the chat template of {label}", None, False, options)


def template_fingerprint(chat_template: str | None) -> str | None:
    """A fingerprint of the argument of `resolve_chat_template`: of a file's content, not of its name."""
    if chat_template is None or chat_template == VICUNA:
        return chat_template
    path = Path(chat_template).expanduser()
    # `resolve_chat_template` refuses a file that does not exist.
    return file_digest(path) if path.is_file() else chat_template
