# SPDX-License-Identifier: Apache-2.0
"""A running engine takes another drafter: `collective_rpc("reload_drafter", args=(path,))`."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split
from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.integration.worker.drafter_loading import LayerProduct
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, runner, tokens
from tests.engine.new_weights import addresses, drafting_with, save_drafter_like, weights_in_tensors
from tests.engine.test_draft_graphs import poisoned_inputs, recorded
from tests.engine.test_drafter_weights import SMALL
from tests.engine.watch import watched
from tests.models import VOCAB, save_random_llama

pytestmark = cpu_only

NUM_PROMPTS = 8
PROJECTED = {**TREE, "project_embedding": True}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as stored": (TREE, {}),
    "int8, projected": (SMALL, {"disable_log_stats": False}),
}


@pytest.fixture(scope="module")
def prompts(asset: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(asset)
    texts = extract_prompts(split(load_corpus())[1], NUM_PROMPTS, max_chars=600)
    return [tokenizer.encode(text)[:150] for text in texts]


@pytest.fixture(scope="module")
def untrained(asset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained drafter for the committed target."""
    return save_drafter_like(asset / "redrafter", tmp_path_factory.mktemp("untrained") / "redrafter")


def greedy_and_seeded() -> list[Any]:
    return [params(temperature=0.8 * (i % 2), seed=i, ignore_eos=True, max_tokens=32) for i in range(NUM_PROMPTS)]


def accepted_per_step(llm: Any, prompts: list[list[int]], expected: list[Any]) -> float:
    """Accepted tokens per step of requests, whose tokens must be those expected."""
    with watched() as watch:
        assert tokens(generate(llm, prompts, greedy_and_seeded())) == expected
    return sum(own.accepted for own in watch.by_id.values()) / sum(own.steps for own in watch.by_id.values())


@pytest.mark.parametrize("way", WAYS)
def test_the_new_drafter_drafts_and_nothing_else_changes(
    make_engine: MakeEngine, asset: Path, prompts: list[list[int]], untrained: Path, way: str
) -> None:
    spec, options = WAYS[way]
    llm = make_engine(asset, spec, **options)
    expected = tokens(generate(make_engine(asset), prompts, greedy_and_seeded()))
    trained = accepted_per_step(llm, prompts, expected)
    with drafting_with(llm, untrained, asset / "redrafter"):
        assert accepted_per_step(llm, prompts, expected) < 0.1
    assert accepted_per_step(llm, prompts, expected) == trained > 0.8


@pytest.mark.parametrize("way", WAYS)
def test_requests_in_flight_go_on(
    make_engine: MakeEngine, asset: Path, prompts: list[list[int]], untrained: Path, tmp_path: Path, way: str
) -> None:
    """Another drafter in every step, or one that is refused, while all requests run."""
    spec, options = WAYS[way]
    llm = make_engine(asset, spec, **options)
    wrong = save_drafter_like(asset / "redrafter", tmp_path, num_draft_layers=4)
    expected = tokens(generate(make_engine(asset), prompts, greedy_and_seeded()))
    engine = llm.llm_engine
    for index, (prompt, sampling) in enumerate(zip(prompts, greedy_and_seeded(), strict=True)):
        engine.add_request(f"flight-{index}", {"prompt_token_ids": prompt}, sampling)
    outputs: dict[str, list[int]] = {}
    reloads = refusals = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                outputs[output.request_id] = list(output.outputs[0].token_ids)
        if (reloads + refusals) % 3 == 2:
            with pytest.raises(CheckpointError):
                llm.collective_rpc("reload_drafter", args=(str(wrong),))
            refusals += 1
        else:
            path = untrained if reloads % 4 < 2 else asset / "redrafter"
            llm.collective_rpc("reload_drafter", args=(str(path),))
            reloads += 1
    llm.collective_rpc("reload_drafter", args=(str(asset / "redrafter"),))
    assert [[outputs[f"flight-{index}"]] for index in range(NUM_PROMPTS)] == expected
    assert reloads > 8 and refusals > 4


def with_nan(served: Path, path: Path) -> None:
    shutil.copytree(served, path)
    tensors = load_file(path / "model.safetensors")
    tensors["rnn_u.bias"][3] = torch.nan
    save_file(tensors, path / "model.safetensors")


def cut_short(served: Path, path: Path) -> None:
    shutil.copytree(served, path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_tensor(served: Path, path: Path) -> None:
    shutil.copytree(served, path)
    tensors = load_file(path / "model.safetensors")
    del tensors["rnn_w.weight"]
    save_file(tensors, path / "model.safetensors")


def with_sizes_of_nothing(served: Path, path: Path) -> None:
    """Refused before a tensor of these sizes is made."""
    shutil.copytree(served, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_draft_layers": 10**9}))


def unlike(**changes: Any) -> Callable[[Path, Path], Any]:
    return lambda served, path: save_drafter_like(served, path, **changes)


WRONG: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "another width": (unlike(exit_dim=96), "exit_dim 96 instead of 128"),
    "another depth": (unlike(num_draft_layers=2), "num_draft_layers 2 instead of 1"),
    "no recurrence": (unlike(rnn=False), "rnn False instead of True"),
    "another target's": (unlike(hidden_size=32, exit_dim=64), "hidden_size 32 instead of 64, exit_dim 64"),
    "another vocabulary": (unlike(vocab_size=VOCAB - 1), "vocab_size 319 instead of 320"),
    "a draft vocabulary": (unlike(draft_vocab_size=50), "draft_vocab_size 50 instead of None"),
    "absurd sizes": (with_sizes_of_nothing, "num_draft_layers must be .* 1000000000"),
    "not a number": (with_nan, "rnn_u.bias in .* holds NaN or infinite values"),
    "cut short": (cut_short, "cannot be read as safetensors"),
    "a tensor less": (without_a_tensor, "lacks rnn_w.weight"),
    "nothing": (lambda served, path: None, "is not a directory"),
    "a target": (lambda served, path: save_random_llama(path), "describes no drafter"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_refused_drafter_changes_nothing(
    make_engine: MakeEngine, random_target: Path, tmp_path: Path, name: str
) -> None:
    make, message = WRONG[name]
    make(random_target / "redrafter", tmp_path / "other")
    llm = make_engine(random_target, TREE)
    with weights_in_tensors(llm) as speculator:
        before = {key: tensor.clone() for key, tensor in speculator.tensors().items()}
        where = addresses(speculator)
        with pytest.raises(ValueError, match=message) as caught:
            llm.collective_rpc("reload_drafter", args=(str(tmp_path / "other"),))
        assert "\n" not in str(caught.value)
        assert addresses(speculator) == where
        assert all(torch.equal(tensor, before[key]) for key, tensor in speculator.tensors().items())


def test_replaced_drafters_are_freed(
    make_engine: MakeEngine, random_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make_engine(random_target, TREE)
    layers: list[ReferenceType[Any]] = []
    make = LayerProduct.__init__

    def remember(self: LayerProduct, layer: Any, *args: Any) -> None:
        layers.append(ref(layer))
        make(self, layer, *args)

    monkeypatch.setattr(LayerProduct, "__init__", remember)
    for _ in range(5):
        llm.collective_rpc("reload_drafter", args=(str(random_target / "redrafter"),))
    gc.collect(2)
    assert len(layers) == 20
    assert [layer() is not None for layer in layers] == [False] * 16 + [True] * 4


def test_an_engine_without_a_drafter_has_none_to_replace(make_engine: MakeEngine, random_target: Path) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    with pytest.raises(NotImplementedError, match="reload_drafter"):
        plain.collective_rpc("reload_drafter", args=(str(random_target / "redrafter"),))
    with pytest.raises(ValueError, match="named by a directory or a hub id, not by 7"):
        tree.collective_rpc("reload_drafter", args=(7,))


@pytest.mark.parametrize("spec", [TREE, PROJECTED], ids=["embedding", "projected"])
def test_recorded_rounds_draw_with_the_new_weights(
    make_engine: MakeEngine, asset: Path, prompts: list[list[int]], untrained: Path, spec: dict[str, Any]
) -> None:
    """Recordings contain addresses: if these still held the first drafter's weights, they would draw its trees."""
    llm = make_engine(asset, spec)
    few, sampling = prompts[:3], params(temperature=0.0, ignore_eos=True, max_tokens=24)
    expected = tokens(generate(make_engine(asset), few, sampling))

    def rounds() -> int:
        with poisoned_inputs(runner(llm).speculator) as sizes:
            assert tokens(generate(llm, few, sampling)) == expected
        return len(sizes)

    counts = {}
    with weights_in_tensors(llm):
        for name, path in (("untrained", untrained), ("trained", asset / "redrafter")):
            llm.collective_rpc("reload_drafter", args=(str(path),))
            counts[name] = rounds()
        with recorded(llm) as speculator:
            where = addresses(speculator)
            found = [rounds()]
            with drafting_with(llm, untrained, asset / "redrafter"):
                found.append(rounds())
            found.append(rounds())
            assert addresses(speculator) == where
            assert speculator.graphs is not None
            assert sum(tape.replays for tape in speculator.graphs.graphs.values()) == sum(found)
    # A recording's batch is padded and rounds differently, which may decide between two draft tokens.
    for own, name in zip(found, ("trained", "untrained", "trained"), strict=True):
        assert abs(own - counts[name]) <= 1
    assert counts["untrained"] > counts["trained"] + 5
    # Restore the products and the drafter of the engine, which other tests use as well.
    llm.collective_rpc("reload_drafter", args=(str(asset / "redrafter"),))


def test_a_draft_vocabulary_is_replaced_by_one_of_its_size(
    make_engine: MakeEngine, asset: Path, tmp_path: Path
) -> None:
    """Rows and map together: the engine then drafts only tokens of the new vocabulary."""
    from redrafter_vllm.model.drafter import Drafter

    paths = []
    for seed, kept in enumerate((torch.arange(3, 203), torch.arange(1000, 1200))):
        path = save_drafter_like(asset / "redrafter", tmp_path / str(seed), seed=seed, draft_vocab_size=200)
        drafter = Drafter.from_pretrained(path)
        drafter.set_draft_tokens(kept)
        drafter.save_pretrained(path)
        paths.append(path)
    llm = make_engine(asset, {**TREE, "model": str(paths[0])})
    rows = runner(llm).speculator.rows
    prompts, sampling = random_prompts(3, 2048, longest=60), params(temperature=0.0, ignore_eos=True, max_tokens=8)
    expected = tokens(generate(make_engine(asset), prompts, sampling))
    for path, lowest in ((paths[0], 3), (paths[1], 1000), (paths[0], 3)):
        llm.collective_rpc("reload_drafter", args=(str(path),))
        rows.trees.tokens.zero_()
        assert tokens(generate(llm, prompts, sampling)) == expected
        drawn = rows.trees.tokens.unique().tolist()
        assert len(drawn) > 5
        assert set(drawn) <= {0, *range(lowest, lowest + 200)}


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_weights_of_gpu_kernels_keep_their_addresses(
    make_engine: MakeEngine, asset: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes and scales of vLLM's own layers, packed for CUDA kernels, with replacements for the kernels."""
    from vllm.config import set_current_vllm_config

    from redrafter_vllm.integration.worker import drafter_loading
    from redrafter_vllm.integration.worker.drafter_loading import linear_maker
    from redrafter_vllm.model.quantization import rounding_linear
    from tests.engine import test_drafter_weights as stand_ins

    engine = make_engine(asset, SMALL, disable_log_stats=False)  # vLLM's layers need its process groups
    monkeypatch.setattr(drafter_loading.current_platform, "is_cpu", lambda: False)
    fp8, int8 = stand_ins.compressed_tensors_w8a16_fp8, stand_ins.compressed_tensors_wNa16
    monkeypatch.setattr(fp8, "init_wfp8_a16_linear_kernel", stand_ins.ColumnMajorFp8)
    monkeypatch.setattr(int8, "choose_mp_linear_kernel", lambda config: stand_ins.PackedInt8)
    weights, biases, x = torch.randn(2, 96, 64) / 8, torch.randn(2, 96), torch.randn(2, 3, 64)
    with set_current_vllm_config(runner(engine).vllm_config):
        served, fresh = (linear_maker(quantization)(*pair) for pair in zip(weights, biases, strict=True))
    where = {name: tensor.data_ptr() for name, tensor in served.tensors().items()}
    assert len(where) >= 3  # codes, scales, bias
    served.adopt(fresh)
    assert {name: tensor.data_ptr() for name, tensor in served.tensors().items()} == where
    torch.testing.assert_close(served(x), rounding_linear(quantization, weights[1], biases[1])(x), atol=1e-5, rtol=0)
