# SPDX-License-Identifier: Apache-2.0
"""Thinking templates and splits of data sets, from the keys of the command to examples and prompts."""

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from redrafter_training.__main__ import main
from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.report import DataError
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.generator import ResponseGenerator
from redrafter_training.responses.prompts import load_tasks
from redrafter_training.run.feed import open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.target.model import TargetModel
from tests.paths import ASSET
from tests.training.chat_tokenizers import CHATML, QWEN_LIKE, R1_LIKE, byte_tokenizer
from tests.training.responses.test_generator import Script

CONFIG = DistillConfig(
    Budget(1),
    beam_length=2,
    window=200,
    batch_size=2,
    packing=False,
    responses=ResponseConfig(count=4, max_prompt=120, temperatures=(0.0,)),
)
EMPTY = "<think>\n\n</think>\n\n"


def record(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def thoughtful(number: int) -> dict[str, Any]:
    return record(f"Is {number}?", f"<think>\nhm {number}\n</think>\n\nIt is {number}.")


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        bos_token_id=0,
        eos_token_id=1,
    )
    return TargetModel(LlamaForCausalLM(config))


def learned(tokenizer: PreTrainedTokenizerBase, batches: Iterable[Windows], count: int) -> set[tuple[str, str]]:
    """For each row of `count` batches, the text before the first token with loss, and the text with loss."""
    found = set()
    for batch in islice(batches, count):
        for tokens, loss_mask in zip(batch.tokens, batch.loss_mask, strict=True):
            counts = loss_mask.nonzero()[:, 0] + 1  # a position counts when the token after it is to be learned
            found.add((tokenizer.decode(tokens[: counts[0]]), tokenizer.decode(tokens[counts])))
    return found


@pytest.mark.parametrize("thinks", [True, False])
def test_template_variables_reach_examples_and_prompts(tmp_path: Path, target: TargetModel, thinks: bool) -> None:
    tokenizer = byte_tokenizer(QWEN_LIKE)
    data = write(tmp_path / "data.jsonl", [thoughtful(number) for number in range(10)])
    settings = FeedSettings(data, None, CONFIG, tmp_path / "run", 8, chat_template_kwargs={"enable_thinking": thinks})
    feed = open_feed(settings, target, tokenizer, LocalContext())
    end = "<|im_start|>assistant\n" if thinks else f"<|im_start|>assistant\n{EMPTY}"
    assert all(tokenizer.decode(prompt).endswith(end) for prompt in feed.prompts)
    rows = learned(tokenizer, feed.batches, 20)
    # Half of the rows are the data's answers, the other the target's own to the same prompts.
    assert all(prompt.endswith(end) for prompt, _ in rows)
    answers = {answer for _, answer in rows if answer.endswith("<|im_end|>") and "It is" in answer}
    said = "<think>\nhm {0}\n</think>\n\nIt is {0}.<|im_end|>" if thinks else "It is {0}.<|im_end|>"
    assert len(answers) >= 8 and answers <= {said.format(number) for number in range(10)}
    assert len(rows) > len(answers)


def test_prompts_of_answers_without_thoughts_are_those_of_serving(tmp_path: Path, target: TargetModel) -> None:
    # The template shows an empty thought before the answer; the prompt of a server has none.
    tokenizer = byte_tokenizer(QWEN_LIKE)
    data = write(tmp_path / "data.jsonl", [record(f"Is {number}?", "It is.") for number in range(10)])
    settings = FeedSettings(data, None, CONFIG, tmp_path / "run", 8)
    feed = open_feed(settings, target, tokenizer, LocalContext())
    own = {prompt for prompt, answer in learned(tokenizer, feed.batches, 20) if answer != "It is.<|im_end|>"}
    assert own and all(prompt.endswith("<|im_start|>assistant\n") for prompt in own)
    assert all(tokenizer.decode(prompt).endswith("<|im_start|>assistant\n") for prompt in feed.prompts)


def test_responses_are_not_reused_with_other_template_variables(tmp_path: Path, target: TargetModel) -> None:
    tokenizer = byte_tokenizer(QWEN_LIKE)
    data = write(tmp_path / "data.jsonl", [thoughtful(number) for number in range(10)])
    for thinks in (True, False):
        kwargs = {"enable_thinking": thinks}
        settings = FeedSettings(data, None, CONFIG, tmp_path / "run", 8, chat_template_kwargs=kwargs)
        open_feed(settings, target, tokenizer, LocalContext())
    assert len(list((tmp_path / "run").glob("responses-*.pt"))) == 2


def test_template_variables_reach_response_generation(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(QWEN_LIKE)
    conversation = [*record("Is it?", "data's own")["messages"], *record("And?", "data's own")["messages"]]
    data = write(tmp_path / "data.jsonl", [{"messages": conversation}, record("So?", "data's own")])
    job = ResponseJob(target="target", data=data, out=tmp_path / "out", window=400)
    user, reply = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    for kwargs, opening in (({}, ""), ({"enable_thinking": False}, EMPTY)):
        chosen = replace(job, chat_template_kwargs=kwargs)
        tasks = [task for task in load_tasks(chosen, tokenizer)[0] if len(task.turns) > 2]
        script = Script(tokenizer, "<think>\nhm\n</think>\n\nIt is.", "Beta")
        ResponseGenerator(chosen, tokenizer, script)(tasks)
        ((first,), (second,)) = [[tokenizer.decode(r.prompt_ids) for r in batch] for batch in script.requests]
        assert first == f"{user}Is it?{reply}{opening}"
        # The thought of the first answer is gone from the second prompt, as in serving.
        assert second == f"{user}Is it?{reply}It is.<|im_end|>\n{user}And?{reply}{opening}"
    assert job.identity() != replace(job, chat_template_kwargs={"enable_thinking": False}).identity()


def test_command_trains_on_answers_with_thoughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With templates that drop all or some thoughts; no record is left out."""
    data = write(tmp_path / "data.jsonl", [thoughtful(number) for number in range(12)])
    for name, template in (("qwen", QWEN_LIKE), ("r1", R1_LIKE)):
        # The small target has no tokens for turns.
        source = template.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
        (tmp_path / f"{name}.jinja").write_text(source)
        given = (
            f"--target {ASSET} --data {data} --chat-template {tmp_path / name}.jinja --max-steps 2 --window 160 "
            f"--batch-size 2 --response-fraction 0 --evaluate false --exit-dim 64 --out {tmp_path / name}"
        )
        assert main([*given.split(), "--chat-template-kwargs", '{"opens": true}']) == 0
        assert json.loads((tmp_path / name / "training.json").read_text())["data"]["used"] == 12
    assert "enable_thinking" not in capsys.readouterr().err


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set of two splits that share a prompt."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "one.jsonl", [record(f"Is {n}?", f"It is {n}.") for n in range(6)])
    write(folder / "two.jsonl", [record("Is 3?", "Not for all."), record("And you?", "Fine.")])
    card = "configs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - split: {s}\n    path: {f}.jsonl\n" for s, f in (("train_sft", "one"), ("test_sft", "two")))
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return str(folder)


def test_held_out_split(tmp_path: Path, target: TargetModel, splits: str) -> None:
    tokenizer = byte_tokenizer(CHATML)
    config = replace(CONFIG, response_fraction=0.0)
    settings = FeedSettings(
        splits, None, config, tmp_path / "run", 8, data_split="train_sft", held_out_split="test_sft"
    )
    feed = open_feed(settings, target, tokenizer, LocalContext())
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    measured = {tokenizer.decode(prompt) for prompt in feed.prompts}
    assert measured == {asked.format("Is 3?"), asked.format("And you?")}
    # The question that the splits share is measured on, and so it is not trained on.
    answers = {answer for _, answer in learned(tokenizer, feed.batches, 20)}
    assert answers == {f"It is {n}.<|im_end|>" for n in (0, 1, 2, 4, 5)}
    assert len(feed.held_out) == 3  # with the answer of the other split to it


def test_responses_to_a_held_out_split(tmp_path: Path, splits: str) -> None:
    job = ResponseJob(
        target="target", data=splits, out=tmp_path / "out", data_split="train_sft", held_out_split="test_sft"
    )
    tasks, report = load_tasks(job, byte_tokenizer(QWEN_LIKE))
    questions = [(task.turns[0].content, task.held_out) for task in tasks]
    assert questions == [(f"Is {n}?", False) for n in (0, 1, 2, 4, 5)] + [("Is 3?", True), ("And you?", True)]
    assert report.used == 8


def test_source_code_has_no_splits(tmp_path: Path, target: TargetModel) -> None:
    settings = FeedSettings("stdlib", None, CONFIG, tmp_path / "run", 8, held_out_split="test")
    with pytest.raises(DataError, match=r"stdlib has no splits: leave --data-config, --data-split"):
        open_feed(settings, target, byte_tokenizer(QWEN_LIKE), LocalContext())
    with pytest.raises(DataError, match="stdlib has no splits"):
        load_tasks(
            ResponseJob(target="target", data="stdlib", out=tmp_path, data_split="train"), byte_tokenizer(QWEN_LIKE)
        )
