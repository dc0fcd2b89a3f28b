# SPDX-License-Identifier: Apache-2.0
"""Targets that do not fit, are quantised, or are on several GPUs. Free memory is simulated; no GPU is needed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import RECIPES
from redrafter_training.run.plan import make_plan
from redrafter_training.target import loading as target_loading
from redrafter_training.target.loading import (
    TargetLoadError,
    check_fits,
    load_target,
    memory_shares,
    model_without_weights,
    visible_devices,
)
from redrafter_training.target.model import TargetModel
from redrafter_training.utils import memory
from redrafter_training.utils.memory import weight_bytes
from tests.models import VOCAB, save_random_llama
from tests.oracles import random_drafter

CONFIG = RECIPES["short"]
CPU = torch.device("cpu")
GPUS = [torch.device("cuda", number) for number in range(2)]
# Of the tiny Llama: queries and output 64 x 128 each, keys and values 64 x 64 each, three 64 x 128 of the MLP, by layer
LINEAR = 2 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 128)
# Embedding, head and five norms
OTHER = 2 * VOCAB * 64 + 5 * 64


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_random_llama(tmp_path_factory.mktemp("target")))


@pytest.fixture
def job(target: str) -> Job:
    return Job(target, "stdlib")


def free(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(target_loading, "free_memory", lambda device: size)


def test_weights_by_hand(target: str) -> None:
    model = model_without_weights(target)
    assert weight_bytes(model, 4, "none") == 4 * (LINEAR + OTHER)
    assert weight_bytes(model, 2, "none") == 2 * (LINEAR + OTHER)
    assert weight_bytes(model, 2, "8bit") == LINEAR + 2 * OTHER
    assert weight_bytes(model, 2, "4bit") == LINEAR * 0.5625 + 2 * OTHER
    tied = save_random_llama(Path(target) / "tied", tie_word_embeddings=True)
    assert weight_bytes(model_without_weights(str(tied)), 4, "none") == 4 * (LINEAR + OTHER - VOCAB * 64)
    assert sum(
        p.numel() * 4 for p in AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).parameters()
    ) == (4 * (LINEAR + OTHER))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of another test in this process may have set the variable, as vLLM does on a CPU."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_target_that_does_not_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * (LINEAR + OTHER)  # 4 (98304 + 41280) = 545.25 · 1024 bytes
    free(monkeypatch, needed)
    assert load_target(job, CPU).vocab_size == VOCAB
    free(monkeypatch, needed - 1)
    with pytest.raises(TargetLoadError) as caught:
        load_target(job, CPU)
    message = str(caught.value)
    assert "needs 545.2 KiB for its weights in float32 and cpu has 545.2 KiB free" in message
    for remedy in ("--target-dtype bfloat16", "--target-quantization 8bit or 4bit", "--hidden-cache"):
        assert remedy in message
    assert "--target-gpus" not in message
    load_target(replace(job, target_dtype="bfloat16"), CPU)
    free(monkeypatch, None)
    load_target(job, CPU)


def test_copies_of_all_processes_must_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * (LINEAR + OTHER)
    free(monkeypatch, 2 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(TargetLoadError, match=r"in each of 3 processes.*fewer workers per machine"):
        check_fits(replace(job, num_workers=3), [CPU])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_fits(replace(job, num_workers=2), [CPU])


def test_several_gpus(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * (LINEAR + OTHER)  # bfloat16
    free(monkeypatch, needed // 2)
    check_fits(job, GPUS)
    with pytest.raises(TargetLoadError, match=r"in bfloat16 and cuda:0 has .*--target-gpus 2"):
        check_fits(job, GPUS[:1])
    check_fits(replace(job, target_quantization="4bit"), GPUS)
    free(monkeypatch, needed // 4)
    with pytest.raises(TargetLoadError, match=r"cuda:0 and cuda:1 have .*--target-gpus 4"):
        check_fits(job, GPUS)

    free(monkeypatch, 1 << 30)
    plan = make_plan(job, CONFIG, GPUS[0])
    shares = memory_shares(GPUS, plan.training_memory)
    assert shares[1] == int(0.95 * (1 << 30))
    assert shares[0] == shares[1] - (plan.total_memory - needed)
    with pytest.raises(TargetLoadError, match="--target-gpus is 2, and this machine has 0"):
        visible_devices(replace(job, target_gpus=2), CPU)


def test_a_width_that_the_targets_head_does_not_take_is_refused_before_any_work(job: Job, tmp_path: Path) -> None:
    """Also where it comes from the drafter to start from, whose shape the keys then have."""
    config = replace(CONFIG, target_head=True, exit_dim=24)
    with pytest.raises(ValueError, match=r"hidden size, \d+, not 24"):
        make_plan(job, config, CPU)
    random_drafter().save_pretrained(tmp_path / "first")
    with pytest.raises(ValueError, match=r"hidden size, \d+, not 24"):
        make_plan(replace(job, init_from=tmp_path / "first"), config, CPU)
    assert make_plan(job, replace(config, exit_dim=None), CPU).drafter.has_input_proj


def test_missing_libraries(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1 << 30)
    monkeypatch.setattr(target_loading, "find_spec", lambda name: None)
    with pytest.raises(TargetLoadError, match="a quantised target needs bitsandbytes: pip install bitsandbytes"):
        load_target(replace(job, target_quantization="8bit"), CPU)
    with pytest.raises(TargetLoadError, match="several GPUs needs accelerate: pip install accelerate"):
        load_target(job, GPUS[0], GPUS)


def test_quantised_twice(job: Job, tmp_path: Path) -> None:
    described = json.loads((Path(job.target) / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(described))
    stored = replace(job, target=str(tmp_path), target_quantization="8bit")
    with pytest.raises(TargetLoadError, match="already stored quantised to 4 bits"):
        load_target(stored, CPU)
    assert weight_bytes(model_without_weights(str(tmp_path)), 2, "none") == LINEAR / 2 + 2 * OTHER


@pytest.mark.parametrize(("kind", "similarity"), [("8bit", 0.99), ("4bit", 0.8)])
def test_quantised_target(job: Job, kind: Any, similarity: float) -> None:
    for library in ("bitsandbytes", "accelerate"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    quantised = load_target(replace(job, target_quantization=kind), CPU)
    whole = load_target(job, CPU)
    tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    found, expected = quantised.outputs(tokens), whole.outputs(tokens)
    assert torch.cosine_similarity(found.logits.flatten(), expected.logits.flatten(), dim=0) > similarity
    assert not torch.equal(found.logits, expected.logits)
    assert torch.equal(quantised.embedding, whole.embedding)
    assert torch.equal(quantised.head_weight, whole.head_weight)
    torch.testing.assert_close(quantised.head().logits(found.hidden), found.logits)
    loaded = quantised.model.get_memory_footprint()
    estimated = weight_bytes(model_without_weights(job.target), 4, kind)
    assert estimated == pytest.approx(loaded, rel=0.1)


def test_layers_on_another_device(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")

    def spread(away: str) -> Any:
        places = {part: "disk" if part == away else "cpu" for part in parts}
        return AutoModelForCausalLM.from_pretrained(
            job.target, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path)
        )

    tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = load_target(job, CPU).outputs(tokens)
    target = TargetModel(spread("model.layers.1"))
    found = target.outputs(tokens)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(target.hidden(tokens), expected.hidden)
    with pytest.raises(ValueError, match="LM head has been moved out of memory"):
        TargetModel(spread("lm_head"))


def test_free_memory_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  9000 kB\nMemAvailable:   7000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", machine)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory(CPU) == 7000 * 1024
    for name, content in (("max", "5000"), ("current", "4000"), ("stat", "anon 1\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert memory.free_memory(CPU) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) == 7000 * 1024
    machine.unlink()
    assert memory.free_memory(CPU) is None


def test_readable_sizes() -> None:
    sizes = (1000, 545.25 * 1024, 13.5 * 2**30, 2.0 * 2**40)
    assert list(map(memory.readable, sizes)) == ["1000 bytes", "545.2 KiB", "13.5 GiB", "2048.0 GiB"]
