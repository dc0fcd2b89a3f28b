# SPDX-License-Identifier: Apache-2.0
"""A target's own texts: of this target, after real prompts, and without what is held out."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from redrafter_training.__main__ import main
from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.python_corpus import load_corpus, split, unseen_prompts
from redrafter_training.data.report import DataError
from redrafter_training.data.text_keys import text_key
from redrafter_training.distributed.context import LocalContext
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.own_texts import own_responses
from redrafter_training.responses.records import Response, TaskResult
from redrafter_training.responses.store import ResponseStore, vocabulary_fingerprint
from redrafter_training.run.feed import Feed, open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.target.model import TargetModel
from redrafter_training.tiny_target import train as target_command
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

RESPONSES = ResponseConfig(count=12, temperatures=(0.0,), min_prompt=6, max_prompt=20, batch_size=4)
CONFIG = DistillConfig(
    Budget(1), beam_length=2, window=48, batch_size=4, response_fraction=0.5, responses=RESPONSES, packing=False
)
A, B = {"weights": "a", "tokenizer": "t"}, {"weights": "b", "tokenizer": "t"}


def byte_target(seed: int) -> TargetModel:
    """A target of the byte tokenizer's vocabulary."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = LlamaConfig(**sizes, **special, num_key_value_heads=1, intermediate_size=24, initializer_range=0.5)
    return TargetModel(LlamaForCausalLM(config))


def stored(folder: Path) -> dict[str, list[tuple[Tensor, int]]]:
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("responses-*.pt")}


def feed_of(folder: Path, records: list[dict[str, Any]], model: TargetModel | None, **changes: Any) -> Feed:
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, records)))
    settings = replace(FeedSettings(str(data), None, CONFIG, folder, 8), **changes)
    return open_feed(settings, model, byte_tokenizer(CHATML), LocalContext())  # type: ignore[arg-type]


def write(settings: FeedSettings, prompts: list[Tensor], target: TargetModel | None) -> list[tuple[Tensor, int]]:
    """The texts, which an earlier call may have written: then without a target."""
    model: Any = target
    return own_responses(prompts, settings.config, model, LocalContext(), settings.folder, settings.written_by)


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def is_greedy(target: TargetModel, text: Tensor, start: int) -> bool:
    best = target.model(input_ids=text[None]).logits[0].argmax(-1)
    return best[start - 1 : -1].tolist() == text[start:].tolist()


def test_texts_belong_to_the_target_that_wrote_them(tmp_path: Path) -> None:
    prompts = [torch.tensor([n, n + 1, n + 2]) for n in (10, 20, 30)]
    settings = FeedSettings("data", None, CONFIG, tmp_path, 4, target=A, computes=("torch.float32", "none"))
    other = replace(settings, target=B)
    for given, seed in ((settings, 1), (other, 2), (settings, 1)):
        target = byte_target(seed)
        texts = write(given, prompts, target)
        assert len(texts) == 3 and all(is_greedy(target, *text) for text in texts)
    assert len(stored(tmp_path)) == 2
    assert "responses-d063a89a0eab.pt" in stored(tmp_path)  # the name that earlier versions look for
    # Only what the texts depend on counts.
    write(replace(settings, data="elsewhere", held_out_windows=9), prompts, None)
    assert len(stored(tmp_path)) == 2
    changes: list[FeedSettings] = [
        replace(settings, computes=("torch.bfloat16", "none")),
        replace(settings, computes=("torch.float32", "8bit")),
        replace(settings, config=replace(CONFIG, seed=1)),
        replace(settings, config=replace(CONFIG, window=40)),
        replace(settings, config=replace(CONFIG, responses=replace(RESPONSES, longest_repeat=5))),
    ]
    for change in changes:
        write(change, prompts, byte_target(1))
    write(settings, prompts[:2], byte_target(1))
    assert len(stored(tmp_path)) == 3 + len(changes)


@pytest.mark.parametrize("bos", [False, True])
def test_plain_texts_give_real_prompts(tmp_path: Path, bos: bool) -> None:
    texts = [f"This is text {n * 37 % 101}, of {n} sorts, with {n * n} words and {n} more. " * 3 for n in range(40)]
    target, tokenizer = byte_target(1), byte_tokenizer()
    if bos:
        tokenizer.add_bos_token = True
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    feed = open_feed(FeedSettings(str(data), None, CONFIG, tmp_path, 8), target, tokenizer, LocalContext())
    ((_, written),) = stored(tmp_path).items()
    prompted = [text[:start].tolist() for text, start in written]
    measured = [prompt.tolist() for prompt in feed.prompts]
    assert len({tuple(text.tolist()) for text, _ in written}) == len(written) == 12
    assert feed.facts["own_texts"] == 12 and feed.facts["measured_prompts"] == len(measured) == 32
    for prompts in (prompted, measured):
        assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
        assert all((prompt[0] == tokenizer.bos_token_id) == bos and 6 <= len(prompt) <= 20 for prompt in prompts)
    # Each is in texts of one side alone.
    sides = [{n for n, text in enumerate(texts) if decoded(prompt) in text} for prompt in measured]
    held_out = set.union(*sides)
    assert all(sides) and len(held_out) < 8
    for prompt in prompted:
        there = {n for n, text in enumerate(texts) if decoded(prompt) in text}
        assert there and not there & held_out


def decoded(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids, skip_special_tokens=True)


def test_texts_with_held_out_content_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [chat(f"question {n}", f"answer {n}") for n in range(30)]
    silent = replace(CONFIG, response_fraction=0.0)
    held = decoded(feed_of(tmp_path, records, byte_target(1), config=silent).prompts[0].tolist()).split()[2]
    tokenizer = byte_tokenizer()

    def two_texts(engine: object, prompts: list[tuple[Tensor, float]], *rest: object) -> Any:
        responses = [f"Answer  {held}", "something else"]
        pairs = zip(prompts, responses, strict=False)
        return [(torch.cat([p, torch.tensor(tokenizer(r)["input_ids"])]), len(p)) for (p, _), r in pairs]

    monkeypatch.setattr("redrafter_training.responses.own_texts.write_texts", two_texts)
    feed = feed_of(tmp_path, records, byte_target(1), config=replace(CONFIG, window=80))
    assert feed.facts["own_texts"] == 1
    rows = [decoded(row.tolist()) for batch in islice(feed.batches, 20) for row in batch.tokens]
    assert any("something else" in row for row in rows)
    assert not any(f"question {held}\n" in row or f"nswer {held}\x00" in row for row in rows)
    assert not any(f"Answer  {held}" in row for row in rows)


def write_folder(folder: Path, pairs: list[tuple[str, str]], target: Mapping[str, str] | None = None) -> str:
    texts = []
    for number, (ask, answer) in enumerate(pairs):
        ids = [tuple(byte_tokenizer()(text)["input_ids"]) for text in (ask, answer)]
        responses = (Response(ids[0], ids[1], answer, True),)
        texts.append(TaskResult(number, f"w{number}", False, 0.0, responses, prompts=(text_key(ask),)))
    settings = {"target": "/models/one", "vocabulary": vocabulary_fingerprint(byte_tokenizer())}
    store = ResponseStore(folder)
    store.open(settings | ({"target_content": dict(target)} if target else {}), len(texts), 1, {})
    store.write(0, texts)
    return str(folder)


def test_folders_lose_what_is_held_out_of_this_data(tmp_path: Path) -> None:
    """A folder for other data, with prompts that are held out here."""
    records = [chat(f"question {n}", f"answer {n}") for n in range(30)]
    folder = write_folder(tmp_path / "more", [(f" Question {n}", f"reply {n}") for n in range(60)])
    config = replace(CONFIG, responses=replace(RESPONSES, folders=(folder,)))
    feed = feed_of(tmp_path, records, None, config=config)
    held = {decoded(prompt.tolist()).split()[2] for prompt in feed.prompts}
    rows = [decoded(row.tolist()) for batch in islice(feed.batches, 60) for row in batch.tokens]
    answered = {row.split("reply")[0].split()[-1] for row in rows if "reply" in row}
    assert len(answered) > 20 and not answered & held


def test_folders_of_another_target_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(f"question {n}", f"answer {n}") for n in range(30)]
    folder = Path(write_folder(tmp_path / "answers", pairs, A))
    tokenizer = byte_tokenizer()
    assert load_responses(folder, tokenizer, 48, 0, target=A).training
    with pytest.raises(DataError, match=r"another target, /models/one \(weights: a -> b\).*--responses.any-target"):
        load_responses(folder, tokenizer, 48, 0, target=B)
    assert load_responses(folder, tokenizer, 48, 0, target=B, any_target=True).training
    old = Path(write_folder(tmp_path / "old", pairs))
    capsys.readouterr()
    assert load_responses(old, tokenizer, 48, 0, target=B).training
    assert "does not say which target" in capsys.readouterr().out
    config = replace(CONFIG, responses=replace(RESPONSES, folders=(str(folder),)))
    with pytest.raises(DataError, match="another target"):
        feed_of(tmp_path, [chat(f"q{n}", f"a{n}") for n in range(9)], None, config=config, target=B)


@pytest.mark.slow
def test_another_target_in_the_same_place(
    tmp_path: Path, corpus_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that starts over generates new texts; one that would continue is refused."""
    target, data = tmp_path / "target", tmp_path / "data.jsonl"
    recipe = target_command.RECIPES["short"]
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    tiny = replace(recipe, budget=Budget(2), intermediate_size=48, window=32, **sizes)
    target_command.make_target("tiny", tiny, target, corpus_root, quiet=True)
    data.write_text("\n".join(json.dumps(chat(f"def double_{n}(x):", f"return {n} * x")) for n in range(12)))
    command = f"--target {target} --data {data} --out {tmp_path / 'out'} --chat-template vicuna --max-steps 2".split()
    command += ["--window", "480", "--batch-size", "2", "--beam-length", "2", "--evaluate", "false", "--device", "cpu"]
    command += ["--response-fraction", "0.5", "--responses.count", "4", "--responses.max-prompt", "20"]
    assert main(command) == 0
    ((name, texts),) = stored(tmp_path / "out.run").items()
    tensors = load_file(target / "model.safetensors")
    tensors["model.norm.weight"] *= -1
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(command) == 1
    assert "other contents of --target (weights): " in capsys.readouterr().err
    assert main([*command, "--resume", "false"]) == 0
    both = stored(tmp_path / "out.run")
    (others,) = (found for other, found in both.items() if other != name)
    assert [text.tolist() for text, _ in others] != [text.tolist() for text, _ in texts]
    shutil.rmtree(tmp_path / "out.run")


def test_source_prompts_to_measure_on_are_in_no_training_file(corpus_root: Path) -> None:
    training, held_out = split(load_corpus(corpus_root))
    copied = [replace(training[0], text=training[0].text + file.text[: len(file.text) // 2]) for file in held_out]
    prompts = unseen_prompts([*training, *copied], held_out, 12, seed=1, max_chars=300)
    assert len(set(prompts)) == len(prompts) == 12
    assert not any(prompt in file.text for file in (*training, *copied) for prompt in prompts)
    assert all(any(prompt in file.text for file in held_out) for prompt in prompts)
    with pytest.raises(ValueError, match="occurs in the training files"):
        unseen_prompts(held_out, held_out, 12, seed=1, max_chars=300)
