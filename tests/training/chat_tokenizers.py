# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and templates small enough to work out by hand what they do."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# A turn closed by a token of its own, then a line break that belongs to nobody.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The last answer alone gets an empty thought that the prompt for it does not have.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No closing token and no regard for add_generation_prompt.
HEADINGS = "{% for m in messages %}{{ '## ' + m['role'] + '\n' + (m['content'] | trim) + '\n' }}{% endfor %}"
# Refuses system turns, as some do.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + CHATML
# The prompt opens a thought that the conversation does not show: no prefix of it.
OPEN_THOUGHT = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
# The prompt names the assistant otherwise than the conversation does, at a length that alone betrays nothing.
RENAMED = CHATML.replace("<|im_start|>assistant\n'", "<|im_start|>helper\n'")
# As Qwen3's: an answer behind the last question shows its thought, or an empty one; earlier answers lack theirs.
# With `enable_thinking` false the prompt itself has the empty thought.
QWEN_LIKE = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% set parts = m['content'].split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.index0 > last.user %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As DeepSeek-R1's: no answer shows its thought, not even the last one; here `opens` has the prompt begin a thought.
R1_LIKE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>' + m['content'].split('</think>')[-1] }}"
    "{{ '</s>' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% if opens %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
# Says something else than the assistant did.
SHOUTING = CHATML.replace("m['content']", "m['content'].upper()")

SPECIAL = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(template: str | None = None, *, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte and per special token; no BOS of its own accord."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made
