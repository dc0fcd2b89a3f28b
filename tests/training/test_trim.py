# SPDX-License-Identifier: Apache-2.0
"""A trained drafter trimmed to the most frequent tokens: the same logits for these tokens only."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from redrafter_training.run.trimming import choose_tokens, data_frequencies, trim
from redrafter_training.trim import main
from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint.io import check_checkpoint
from tests.oracles import random_drafter
from tests.paths import ASSET

# By its name the first is held out of all training.
FILES = {"first.py": "alpha = beta\n" * 20, "second.py": "gamma = delta\n" * 20}


def kept_logits(drafter: Drafter, tokens: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    context, state = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    return drafter(context, state)[:, tokens]


@pytest.mark.parametrize("layers", [0, 2])
def test_logits_of_the_kept_tokens_do_not_change(layers: int) -> None:
    full = random_drafter(num_draft_layers=layers)
    kept = trim(full, torch.tensor([0, 3, 4, 10]))
    assert kept.draft_tokens is not None
    assert kept.draft_tokens.tolist() == [0, 3, 4, 10]
    torch.testing.assert_close(kept_logits(kept, [0, 1, 2, 3]), kept_logits(full, [0, 3, 4, 10]))
    again = trim(kept, torch.tensor([3, 10]))
    assert again.draft_tokens is not None
    assert again.draft_tokens.tolist() == [3, 10]
    torch.testing.assert_close(kept_logits(again, [0, 1]), kept_logits(full, [3, 10]))


def test_impossible_trimmings() -> None:
    kept = trim(random_drafter(), torch.tensor([0, 3, 4, 10]))
    for tokens in ([0, 5], [2], [10, 11]):
        with pytest.raises(ValueError, match=r"not all of those to trim it to|outside a vocabulary of 11"):
            trim(kept, torch.tensor(tokens))
    with pytest.raises(ValueError, match="strictly increasing"):
        trim(kept, torch.tensor([3, 0]))
    for size in (0, 4, 5):
        with pytest.raises(ValueError, match=f"cannot trim a drafter of 4 tokens to {size}"):
            choose_tokens(kept, torch.ones(11), size)


def test_a_second_trimming_chooses_among_the_kept_tokens() -> None:
    kept = trim(random_drafter(), torch.tensor([0, 3, 4, 10]))
    frequencies = torch.tensor([0.0, 9, 9, 1, 2, 9, 9, 9, 9, 9, 3]).double()
    assert choose_tokens(kept, frequencies, 2).tokens.tolist() == [4, 10]
    assert choose_tokens(kept, frequencies, 3).tokens.tolist() == [3, 4, 10]


def test_trim_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On Python sources, without held-out files; the dtype of the stored drafter is kept."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, text in FILES.items():
        (sources / name).write_text(text)
    out = tmp_path / "trimmed"
    command = [str(ASSET / "redrafter"), str(out), "--target", str(ASSET), "--data", str(sources)]
    assert main([*command, "--draft-vocab-size", "20"]) == 0
    assert check_checkpoint(out).draft_vocab_size == 20
    full = Drafter.from_pretrained(ASSET / "redrafter", dtype=None)
    trimmed = Drafter.from_pretrained(out, dtype=None)
    assert trimmed.dtype == full.dtype == torch.bfloat16
    kept = trimmed.draft_tokens
    assert kept is not None
    assert torch.equal(trimmed.output.weight, full.output.weight[kept])
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    held_out, learned = (set(tokenizer.encode(text, add_special_tokens=False)) for text in FILES.values())
    assert learned <= set(kept.tolist())
    assert not held_out - learned <= set(kept.tolist())
    assert "20 tokens, 100.00% of the data's" in capsys.readouterr().out
    assert main([*command, "--draft-vocab-size", "10"]) == 1
    assert "holds a drafter already" in capsys.readouterr().err
    assert check_checkpoint(out).draft_vocab_size == 20
    assert main([*command, "--draft-vocab-size", "10", "--overwrite"]) == 0
    assert check_checkpoint(out).draft_vocab_size == 10
    command[1] = str(ASSET)
    assert main([*command, "--draft-vocab-size", "10", "--overwrite"]) == 1
    assert "holds something else than a drafter" in capsys.readouterr().err
    command[1] = str(tmp_path / "other")
    assert main([*command, "--draft-vocab-size", "2048"]) == 1
    assert "cannot trim a drafter of 2048 tokens to 2048" in capsys.readouterr().err


def test_only_tokens_with_loss_are_counted(tmp_path: Path) -> None:
    """The answers of training conversations, not the user's turns."""
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    prompts = ("zzzz", "zz zz", "z zzz")
    chats = [
        [{"from": "human", "value": prompt}, {"from": "gpt", "value": f"return self {number}"}]
        for number, prompt in enumerate(prompts)
    ]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([{"conversations": turns} for turns in chats]))
    frequencies = data_frequencies(str(file), tokenizer, 2048, 128, "vicuna")
    learned = set(frequencies.nonzero().flatten().tolist())
    answer = tokenizer.encode(" return self", add_special_tokens=False)
    assert set(answer) <= learned
    assert learned.isdisjoint(tokenizer.encode("zzzz", add_special_tokens=False))
