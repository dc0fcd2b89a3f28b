# SPDX-License-Identifier: Apache-2.0
import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from redrafter_training.__main__ import main
from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.batches import collate, conversation_batches
from redrafter_training.data.division import response_prompts
from redrafter_training.data.report import DataError
from redrafter_training.data.tokenize import Example
from tests.paths import ASSET
from tests.training.chat_tokenizers import byte_tokenizer


def example(number: int, length: int = 5, learned: tuple[int, ...] = (2, 3)) -> Example:
    loss = torch.zeros(length, dtype=torch.bool)
    loss[list(learned)] = True
    return Example(str(number), torch.full((length,), number, dtype=torch.int32), loss)


def test_rows_by_hand() -> None:
    windows = collate([example(7, 5, (2, 4)), example(9, 3, (1,))], min_length=4)
    assert windows.tokens.shape == (2, 16)
    assert windows.tokens[:, :6].tolist() == [[7, 7, 7, 7, 7, 0], [9, 9, 9, 0, 0, 0]]
    # The tokens to be learned are numbers 2 and 4: what is predicted after 1 and after 3.
    assert windows.loss_mask[:, :6].int().tolist() == [[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert collate([example(1)], min_length=17).tokens.shape == (1, 32)


def test_batches_mix_sources_by_fraction_and_use_each_example_once_per_pass() -> None:
    conversations, answers = [example(n) for n in range(1, 4)], [example(n) for n in range(11, 14)]
    batches = conversation_batches(conversations, answers, batch_size=4, response_fraction=0.25, min_length=4, seed=0)
    rows = [batch.tokens[:, 0].tolist() for batch in islice(batches, 6)]
    assert all(sorted(row[:3]) == [1, 2, 3] and row[3] > 10 for row in rows)
    assert sorted(row[3] for row in rows[:3]) == sorted(row[3] for row in rows[3:]) == [11, 12, 13]
    with pytest.raises(ValueError, match="empty"):
        next(conversation_batches(conversations, [], batch_size=4, response_fraction=0.5, min_length=4, seed=0))


def test_response_prompts_are_distinct_and_at_most_half_the_window() -> None:
    tokenizer = byte_tokenizer()
    conversations = [example(7, 8, (4,)), example(8, 16, (9,)), example(7, 9, (4, 5)), example(9, 4, (3,))]
    prompts = response_prompts(conversations, [], tokenizer, 16, ResponseConfig(), 0)
    # The second leaves less than half, and the third asks what the first does.
    assert sorted(prompt.tolist() for prompt in prompts) == [[7] * 4, [9] * 3]
    with pytest.raises(DataError, match="--window"):
        response_prompts(conversations, [], tokenizer, 4, ResponseConfig(), 0)


@pytest.mark.slow
def test_command_trains_on_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All answers occur in training: only prompts are held out, and the plan says so."""
    data = tmp_path / "labels.jsonl"
    lines = [
        {"instruction": f"Is {n} odd?", "output": ("It is not.", "It certainly is.")[n % 2]} for n in [*range(30), 3, 4]
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    arguments = (
        f"--target {ASSET} --data {data} --chat-template vicuna --max-steps 2 --window 384 --batch-size 2 "
        f"--beam-length 2 --response-fraction 0 --device cpu --out {tmp_path / 'drafter'}"
    ).split()
    assert main([*arguments, "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "32 texts with 30 different first prompts or documents; 2 are equal to another one" in shown
    assert "no held-out loss can be measured" in shown
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 are equal to another one and are left out" in shown
    report = json.loads((tmp_path / "drafter" / "training.json").read_text())
    assert report["metrics"] == {} and report["held_out"]["4x2"]["tokens_per_step"] >= 1
    assert report["data"]["duplicates"] == 2 and report["data"]["distinct_prompts"] == 30
    assert report["data"]["held_out"] == 0 < report["data"]["held_out_prompts"] == report["data"]["measured_prompts"]

    data.write_text("\n".join(json.dumps({"instruction": "  the SAME", "output": f"answer {n}"}) for n in range(9)))
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more, "--resume", "false", "--overwrite"]) == 1
        assert "9 usable texts with 1 different prompts are too few" in capsys.readouterr().err
    arguments.append("--overwrite")
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {n} of it. " for n in range(2000)))
    assert main([*arguments, "--data", str(book), "--dry-run"]) == 0
    assert "one document, held out by its pieces" in capsys.readouterr().out
    assert main([*arguments, "--data", str(book), "--evaluate", "false", "--resume", "false"]) == 0


@pytest.mark.slow
def test_command_trains_on_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"def double_{n}(x):"},
                {"role": "assistant", "content": f"    return {n} * x"},
            ]
        }
        for n in range(30)
    ]
    data = tmp_path / "conversations.jsonl"
    data.write_text("\n".join([*map(json.dumps, records), '{"messages": []}']))
    target = tmp_path / "target"
    target.mkdir()
    for file in ASSET.iterdir():
        if file.is_file():
            (target / file.name).symlink_to(file)
    arguments = (
        f"--target {target} --data {data} --chat-template vicuna --max-steps 4 --window 384 --batch-size 4 "
        "--beam-length 2 --responses.count 4 --responses.max-prompt 40 --evaluate-windows 2 --device cpu"
    ).split()
    assert main([*arguments, "--out", str(tmp_path / "drafter")]) == 0
    report = json.loads((tmp_path / "drafter" / "training.json").read_text())
    assert report["data"]["used"] == 30
    assert report["data"]["skipped"] == 1
    assert report["data"]["training"] + report["data"]["held_out"] == 30
    assert report["data"]["held_out"] == report["data"]["held_out_prompts"] >= 1
    assert report["held_out"]["4x2"]["tokens_per_step"] >= 1
    capsys.readouterr()

    data.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 1
    assert "none of the 1 records" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path / "nowhere.json"), "--out", str(tmp_path / "none")]) == 1
    assert "nowhere.json" in capsys.readouterr().err
