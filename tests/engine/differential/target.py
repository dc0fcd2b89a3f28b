# SPDX-License-Identifier: Apache-2.0
"""A tiny random target of bytes: text, stop strings and grammars at almost no cost."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.models import save_random_drafter, save_random_llama

SPECIAL = ("<pad>", "<s>", "</s>")  # the ids that `save_random_llama` gives them
VOCAB = len(SPECIAL) + 256


def save_byte_target(path: Path) -> Path:
    """Model, drafter and a tokenizer with one token per byte."""
    save_random_llama(path, vocab_size=VOCAB)
    save_random_drafter(path / "redrafter", vocab_size=VOCAB)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate((*SPECIAL, *alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    ).save_pretrained(path)
    return path
