# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from redrafter_training.data.python_corpus import load_corpus
from redrafter_training.tiny_target.tokenizer import train_tokenizer

STRANGE = [
    "def f(x):\n\t  return 'é漢😀' , don't \r\n",
    "  leading and trailing  ",
    "",
    "a\u0000b \x7f",
    "x = [1 , 2 ]  . y !",
    "\n\n\n\t\t",
]


def test_round_trip_through_disk(corpus_root: Path, tmp_path: Path) -> None:
    texts = [f.text for f in load_corpus(corpus_root)]
    train_tokenizer(texts, 400, max_length=512).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 400
    assert tokenizer.model_max_length == 512
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    for text in [*STRANGE, *texts[:20]]:
        ids = tokenizer(text, verbose=False)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_vocabulary_must_hold_all_bytes() -> None:
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["a"], 258)
