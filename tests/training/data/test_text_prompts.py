# SPDX-License-Identifier: Apache-2.0
"""Prompts cut from texts: real ones, different ones, and none from the other side of the split."""

import random

import torch

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.text_prompts import Passages, cut_stretches, text_prompts, without_special
from tests.training.chat_tokenizers import byte_tokenizer

TEXTS = [list(range(100, 160)), [], list(range(200, 237)), [7]]


def test_stretches_are_different_pieces_of_the_texts() -> None:
    found = cut_stretches(TEXTS, 40, (3, 9), (5,), random.Random(0))
    assert len(found) == len({stretch.ids for stretch in found}) == 40
    for stretch in found:
        assert stretch.ids[0] == 5
        body = list(stretch.ids[1:])
        assert body == TEXTS[stretch.text][stretch.start : stretch.start + len(body)]
        assert 3 <= len(body) <= 9 or body == [7]
    assert len({stretch.start for stretch in found}) > 10 and len({len(stretch.ids) for stretch in found}) > 4
    assert found == cut_stretches(TEXTS, 40, (3, 9), (5,), random.Random(0))
    assert found != cut_stretches(TEXTS, 40, (3, 9), (5,), random.Random(1))


def test_texts_with_few_stretches_give_few() -> None:
    assert {stretch.ids for stretch in cut_stretches([[1, 2, 3]], 50, (2, 2), (), random.Random(0))} == {(1, 2), (2, 3)}
    assert [stretch.ids for stretch in cut_stretches([[1, 2]], 5, (4, 9), (), random.Random(0))] == [(1, 2)]
    assert cut_stretches([[], []], 5, (1, 2), (), random.Random(0)) == []


def test_nothing_from_elsewhere() -> None:
    elsewhere = Passages([[100, 101, 102, 103], [], [120, 121, 122]])
    assert [101, 102] in elsewhere and [103, 120] not in elsewhere and [102, 101] not in elsewhere
    found = cut_stretches(TEXTS, 500, (2, 3), (), random.Random(0), elsewhere=elsewhere)
    bodies = {stretch.ids for stretch in found}
    assert bodies.isdisjoint({(100, 101), (101, 102), (100, 101, 102), (121, 122), (120, 121, 122)})
    assert {(99 + n, 100 + n) for n in range(5, 20)} <= bodies
    assert [] not in cut_stretches(TEXTS, 5, (2, 3), (), random.Random(0), elsewhere=Passages([]))


def test_one_length_in_a_block() -> None:
    found = cut_stretches([list(range(1000))], 24, (2, 30), (), random.Random(0), block=8)
    lengths = [len(stretch.ids) for stretch in found]
    assert [len(set(lengths[first : first + 8])) for first in (0, 8, 16)] == [1, 1, 1] and len(set(lengths)) > 1


def test_prompts_of_tokenised_texts() -> None:
    tokenizer = byte_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [torch.tensor([bos, *tokenizer(f"text number {n} of some")["input_ids"], eos]) for n in range(9)]
    config = ResponseConfig(min_prompt=4, max_prompt=10, batch_size=4)
    prompts = text_prompts(texts, 30, tokenizer, (bos,), config, 0)
    assert len({tuple(prompt.tolist()) for prompt in prompts}) == 30
    for prompt in prompts:
        assert 4 <= len(prompt) <= 10 and prompt[0] == bos and eos not in prompt
        assert any(tokenizer.decode(prompt[1:]) in tokenizer.decode(text) for text in texts)
    assert without_special(torch.tensor([bos, eos]), {bos, eos}) == []
    assert without_special(torch.tensor([9, bos, 8, eos]), {bos, eos}) == [9, bos, 8]
