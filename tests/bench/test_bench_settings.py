# SPDX-License-Identifier: Apache-2.0
"""Configurations, prompts, memory and engine options of a benchmark, and the mistakes that are refused."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from redrafter_vllm.bench import memory
from redrafter_vllm.bench.configurations import PLAIN, Configuration, ConfigurationError, compared
from redrafter_vllm.bench.load import Ramp, parse_load
from redrafter_vllm.bench.prompts import make_prompts, mixed, sources
from redrafter_vllm.bench.settings import Plan, Settings, SettingsError, check_ports, target_folder
from redrafter_vllm.config import OptionError
from redrafter_vllm.prompt_sets import EvaluationPrompt, PromptSetError
from redrafter_vllm.utils.local_server import HOST
from tests.paths import ASSET
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

NGRAM = 'lookup={"method": "ngram", "num_speculative_tokens": 4}'


def test_plain_comes_first_and_others_keep_their_names() -> None:
    found = compared(str(ASSET), None, [NGRAM, 'narrow={"method": "redrafter", "beam_width": 2}'], has_gpu=False)
    assert found[0].name == PLAIN and found[0].speculative is None
    assert [one.name for one in found[-2:]] == ["lookup", "narrow"]
    ours = next(one for one in found if one.is_redrafter)
    assert ours.speculative is not None and ours.speculative["model"] == str(ASSET / "redrafter")
    assert found[-1].speculative == {"method": "redrafter", "model": str(ASSET / "redrafter"), "beam_width": 2}


def test_other_methods_run_on_vllm_as_users_have_it() -> None:
    plain, *_, lookup = compared(str(ASSET), None, [NGRAM], has_gpu=False)
    assert lookup.env == plain.env and plain.env["VLLM_USE_V2_MODEL_RUNNER"] == "0" and plain.env["VLLM_PLUGINS"] == ""
    on_gpu = compared(str(ASSET), None, [], has_gpu=True)
    assert [one.name for one in on_gpu] == ["plain vLLM", "ReDrafter fixed", "ReDrafter adaptive"]
    assert on_gpu[0].env == {"VLLM_PLUGINS": ""}
    assert all(one.env == {} for one in compared(str(ASSET), None, [], has_gpu=False) if one.is_redrafter)


def test_without_redrafter_no_drafter_is_needed(tmp_path: Path) -> None:
    assert [one.name for one in compared(str(tmp_path), None, [NGRAM], has_gpu=False, redrafter=False)] == [
        PLAIN,
        "lookup",
    ]


def test_slots() -> None:
    assert Configuration("a", None, {}).slots == 0
    assert Configuration("a", {"method": "ngram", "num_speculative_tokens": 5}, {}).slots == 5
    assert Configuration("a", {"method": "redrafter", "beam_width": 2, "beam_length": 3}, {}).slots == 6


SCHEDULE = {"num_speculative_tokens_per_batch_size": [[1, 4, 3]]}


@pytest.mark.parametrize(
    ("options", "adapts"),
    [({}, True), ({"adaptive": False}, False), (SCHEDULE, False), ({**SCHEDULE, "adaptive": True}, True)],
)
def test_what_adapts(options: dict[str, Any], adapts: bool) -> None:
    assert Configuration("a", {"method": "redrafter", **options}, {}).adapts == adapts
    assert not Configuration("a", {"method": "ngram", **options}, {}).adapts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"method": "ngram"}', "has no name: give NAME=JSON"),
        ("lookup", "has no name"),
        ("lookup={method: ngram}", "is not JSON"),
        ("lookup=[1]", "is no speculative config"),
        ('lookup={"num_speculative_tokens": 4}', "a method or a model"),
        (f'{PLAIN}={{"method": "ngram"}}', "two configurations have the name 'plain vLLM'"),
    ],
)
def test_mistaken_configurations(given: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compared(str(ASSET), None, [given], has_gpu=False)


def test_mistaken_options_of_redrafter() -> None:
    with pytest.raises(OptionError, match=r"'beam_wdith' .*did you mean 'beam_width'"):
        compared(str(ASSET), None, ['own={"method": "redrafter", "beam_wdith": 2}'], has_gpu=False)


def make(**others: Any) -> Settings:
    both = (Configuration(PLAIN, None, {}), Configuration("n", {"method": "ngram", "num_speculative_tokens": 4}, {}))
    return Settings(**{"mode": "offline", "target": str(ASSET), "configurations": both, **others})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurrency": ()}, "--concurrency must be positive"),
        ({"concurrency": (0, 1)}, "--concurrency must be positive, not 0 1"),
        ({"concurrency": (Ramp(0),)}, "--concurrency must be positive, not 1-0-1"),
        ({"concurrency": (1, Ramp(8)), "mode": "serve"}, "--concurrency 1-8-1 needs offline"),
        ({"rounds": 0}, "--rounds must be at least 1, not 0"),
        ({"prompt_tokens": -1}, "--prompt-tokens must be at least 1"),
        ({"max_tokens": 1}, "--max-tokens must be at least 2"),
        ({"temperature": -0.5}, "--temperature must be at least 0"),
        ({"port": 65535}, "--port 65535 is no port"),
        ({"port": 8000}, "--port is for servers"),
        ({"configurations": (Configuration(PLAIN, None, {}),)}, "nothing to compare"),
    ],
)
def test_mistaken_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make(**given)


def test_a_busy_port() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} is in use"):
            check_ports(port, 2)


@pytest.mark.parametrize("target", ["./absent", "absent", "a/b/c"])
def test_a_target_that_is_not_there(target: str) -> None:
    with pytest.raises(SettingsError, match="is no folder of a model, and no hub id"):
        target_folder(target)


def test_a_target_that_was_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="download it first, with hf download some/model"):
        target_folder("some/model")


def plan(**others: Any) -> Plan:
    return Plan(make(**others), ASSET, ())


def test_engine_options() -> None:
    given = plan(prompt_tokens=100, max_tokens=20, concurrency=(2, 6), options=("--dtype", "float32")).engine_options(
        Configuration(PLAIN, None, {})
    )
    # Prompt, new tokens, and two steps of four drafts and a root.
    assert given[given.index("--max-model-len") + 1] == "130"
    assert given[given.index("--max-num-seqs") + 1] == "6"
    assert given[-2:] == ["--dtype", "float32"]
    assert "--gpu-memory-utilization" not in given


def test_a_prompt_longer_than_the_target_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"positions, and 1000005 are needed"):
        _ = plan(prompt_tokens=10**6, max_tokens=5).max_model_len


def test_runner_v1_does_not_cut_prompts_that_have_a_seed() -> None:
    old = Configuration("n", {"method": "ngram"}, {"VLLM_USE_V2_MODEL_RUNNER": "0"})
    assert "--no-enable-chunked-prefill" in plan(temperature=0.7).engine_options(old)
    assert "--no-enable-chunked-prefill" not in plan().engine_options(old)


def test_engines_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = memory.Gpu("some GPU", 0, 80 << 30)
    given = Plan(make(), ASSET, (gpu,)).engine_options(Configuration(PLAIN, None, {}))
    assert given[given.index("--gpu-memory-utilization") + 1] == "0.45"
    alone = Plan(make(one_at_a_time=True), ASSET, (gpu,)).engine_options(Configuration(PLAIN, None, {}))
    assert "--gpu-memory-utilization" not in alone


def test_free_memory_of_the_gpus_that_an_engine_uses() -> None:
    cards = tuple(memory.Gpu("some GPU", 0, free << 30) for free in (10, 20, 40))
    assert Plan(make(), ASSET, cards).free == 10 << 30
    assert Plan(make(options=("--tensor-parallel-size=2",)), ASSET, cards).free == 30 << 30
    assert Plan(make(options=("-tp", "3")), ASSET, cards).free == 70 << 30


def test_a_cache_for_all_requests() -> None:
    config = SimpleNamespace(
        num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=512, head_dim=None
    )
    # 3 requests of 2 pages and 8 more, of 128 tokens; keys and values of 3 layers, 2 heads of 64.
    assert memory.cache_bytes(config, 3, 130, 2) == (3 * 2 + 8) * 128 * (2 * 3 * 2 * 64) * 2


def test_room() -> None:
    assert memory.fits_together(3, 3, 10)
    assert not memory.fits_together(3, 4, 12)
    with pytest.raises(memory.RoomError, match=r"needs about 3.0 GiB and 2.0 GiB are free"):
        memory.fits_together(2, 3 << 30, 2 << 30)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(memory.RoomError, match="holds no weights"):
        memory.weight_bytes(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.bin").write_bytes(b"123")
    assert memory.weight_bytes(tmp_path) == 5


def test_memory_of_processes() -> None:
    assert memory.peak_resident(os.getpid()) > 1 << 20
    assert memory.peak_resident(2**22 - 1) == 0


def test_gpus_as_nvidia_smi_describes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor word; do last="$word"; done\n[ "$last" = 1 ] && echo "NVIDIA X, 80GB, 5, 100"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert memory.gpus() == [memory.Gpu("NVIDIA X, 80GB", 5 << 20, 100 << 20)]
    assert memory.device_memory_used() == 5 << 20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert memory.gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert memory.gpus() == []


def test_categories_take_turns() -> None:
    prompts = [EvaluationPrompt(str(n), category, (f"{n}",)) for n, category in enumerate("aaabcc")]
    assert [prompt.number for prompt in mixed(prompts)] == ["0", "3", "4", "1", "5", "2"]


def test_prompts_for_a_chat_model() -> None:
    made = make_prompts("mt-bench", byte_tokenizer(CHATML), 5, 400)
    assert len(made) == 5 and not made.adds_special_tokens
    assert made.texts[0].startswith("<|im_start|>user\n") and made.texts[0].endswith("<|im_start|>assistant\n")
    assert all(len(ids) <= 400 for ids in made.ids)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSET)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "first prompt\n\n  second prompt\n"),
        ("turns.jsonl", '{"turns": ["first prompt", "later"]}\n{"turns": ["  second prompt"]}\n'),
        ("prompts.jsonl", '{"prompt": "first prompt"}\n{"prompt": "  second prompt"}\n'),
    ],
)
def test_a_file_of_prompts(name: str, content: str, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / name).write_text(content)
    made = make_prompts(str(tmp_path / name), tokenizer, 2, 50)
    assert made.texts == ["first prompt", "  second prompt"]
    assert made.ids == [tokenizer(text)["input_ids"] for text in made.texts] and made.adds_special_tokens
    made.write(tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [{"prompt": "first prompt"}, {"prompt": "  second prompt"}]


def test_too_few_prompts(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "one.txt").write_text("short\n" + "long " * 100)
    with pytest.raises(PromptSetError, match=r"has 1 prompts of at most 20 tokens, and 2 are needed"):
        make_prompts(str(tmp_path / "one.txt"), tokenizer, 2, 20)


def test_random_prompts(tokenizer: Any) -> None:
    made, again = make_prompts("random", tokenizer, 4, 30), make_prompts("random", tokenizer, 4, 30)
    assert made == again and len({tuple(ids) for ids in made.ids}) == 4
    assert all(20 <= len(ids) <= 30 for ids in made.ids)


@pytest.mark.parametrize("data", ["mt_bench", "absent.jsonl"])
def test_an_unknown_data_set(data: str) -> None:
    with pytest.raises(PromptSetError, match=f"{data} is no data set: give mt-bench, spec-bench, random, or a file"):
        sources(data)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(PromptSetError, match="holds no prompts"):
        sources(str(tmp_path / "empty.txt"))


def test_a_ramp_has_as_many_requests_at_each_level_as_run_there() -> None:
    # 1 + 2 + 4 + 6 + 4 + 2 + 1, and twice as many where 30 are wanted at least.
    ramp = parse_load("1-6-1")
    assert ramp == Ramp(6) and str(ramp) == "1-6-1"
    assert make(concurrency=(1, ramp), requests=16).requests_at(ramp) == 20
    assert make(concurrency=(1, ramp), requests=30).prompts == 40
    assert make(concurrency=(1, ramp)).most_at_a_time == 6
    assert make(concurrency=(1, ramp)).described()["concurrency"] == [1, "1-6-1"]


@pytest.mark.parametrize("text", ["1-6", "2-6-2", "six", "1-6-1-6", "1--6-1"])
def test_loads_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_load(text)
