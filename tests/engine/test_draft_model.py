# SPDX-License-Identifier: Apache-2.0
"""The drafter as vLLM's draft model: sleep, new weights of the target, and a trainer's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.v1.worker.gpu_worker import Worker

from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.model.drafter import Drafter
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, runner, tokens, worker
from tests.engine.new_weights import addresses, save_drafter_like, weights_in_tensors
from tests.engine.test_lora import LORA
from tests.models import VOCAB, save_random_drafter, save_random_llama

pytestmark = cpu_only

PROJECTED = {**TREE, "project_embedding": True}
SAMPLING = [params(temperature=0.8 * (i % 2), seed=i, ignore_eos=True, max_tokens=16) for i in range(4)]
PROMPTS = random_prompts(4, VOCAB, longest=60)


@dataclass
class Nothing(WeightTransferInitInfo):
    pass


@dataclass
class File(WeightTransferUpdateInfo):
    path: str


class FileTransfer(NCCLWeightTransferEngine):
    """vLLM's weight transfer by NCCL, with a file instead of the network; drafters arrive in memory that is reused."""

    init_info_cls = Nothing
    update_info_cls = File

    def init_transfer_engine(self, init_info: Any) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # vLLM's method waits for the accelerator, which this machine may not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Any) -> None:
        for name, tensor in load_file(update_info.path).items():
            self.model.load_weights([(name, tensor)])
            if self.model is not self._default_model:
                tensor.zero_()  # vLLM's loading of a target keeps the tensors that it is given


@pytest.fixture(scope="module")
def transferring(make_engine: MakeEngine, random_target: Path) -> Any:
    """An engine to which a trainer sends weights."""
    if "files" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("files", FileTransfer)
    llm = make_engine(random_target, PROJECTED, weight_transfer_config={"backend": "files"})
    llm.init_weight_transfer_engine({"init_info": {}})
    return llm


def send(llm: Any, tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    llm.update_weights({"update_info": {"path": str(path)}})


def logits(llm: Any) -> Tensor:
    """The served drafter's logits for some context and state."""
    generator = torch.Generator().manual_seed(0)
    drafter = runner(llm).speculator.drafter
    size = drafter.config.hidden_size
    return drafter(torch.randn(2, size, generator=generator), torch.randn(2, 4, size, generator=generator))


def logits_of(path: Path) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drafter = Drafter.from_pretrained(path)
    size = drafter.config.hidden_size
    return drafter(torch.randn(2, size, generator=generator), torch.randn(2, 4, size, generator=generator))


def assert_drafting_with(llm: Any, path: Path) -> None:
    torch.testing.assert_close(logits(llm), logits_of(path), atol=1e-4, rtol=1e-4)
    assert_inputs_are_of_the_target(llm, path)


def assert_inputs_are_of_the_target(llm: Any, drafter: Path) -> None:
    """The drafter's inputs are the target's present embedding, or its product with the drafter's W."""
    speculator = runner(llm).speculator
    (table,) = (weight for name, weight in runner(llm).get_model().named_parameters() if "embed_tokens" in name)
    rows = table[: speculator.drafter.config.vocab_size]
    if speculator.drafting.project_embedding:
        rows = rows @ Drafter.from_pretrained(drafter).rnn_w.weight.T
    torch.testing.assert_close(speculator.embedding, rows, atol=1e-4, rtol=1e-4)


def test_vllm_finds_the_draft_model(transferring: Any, make_engine: MakeEngine, random_target: Path) -> None:
    own = worker(transferring)
    model = own.get_draft_model()
    assert model is runner(transferring).get_draft_model() is runner(transferring).speculator.draft_model
    assert own.supports_draft_weight_updates()
    assert not list(model.parameters())
    assert {name: tensor.data_ptr() for name, tensor in model.named_buffers()} == addresses(
        runner(transferring).speculator
    )
    # It keeps only the target tensors that it drafts with: vLLM may have shut the runner down.
    assert not any(value is runner(transferring).model for value in vars(runner(transferring).speculator).values())
    assert runner(make_engine(random_target)).get_draft_model() is None


def test_a_trainer_sends_a_drafter(transferring: Any, random_target: Path, tmp_path: Path) -> None:
    """In parts, with any spelling of names, while requests run; it is used once it is complete."""
    served = random_target / "redrafter"
    new = save_drafter_like(served, tmp_path / "new")
    tensors = list(load_file(new / "model.safetensors").items())
    expected = tokens(generate(transferring, PROMPTS, SAMPLING))
    transferring.start_draft_weight_update()
    send(transferring, dict(tensors[:2]), tmp_path / "first")
    assert_drafting_with(transferring, served)
    assert tokens(generate(transferring, PROMPTS, SAMPLING)) == expected
    send(transferring, {f"drafter.{name}": tensor for name, tensor in tensors[2:]}, tmp_path / "second")
    assert_drafting_with(transferring, served)
    transferring.finish_weight_update()
    assert_drafting_with(transferring, new)
    assert tokens(generate(transferring, PROMPTS, SAMPLING)) == expected
    transferring.collective_rpc("reload_drafter", args=(str(served),))
    assert_drafting_with(transferring, served)


def test_incomplete_and_aborted_updates_change_nothing(transferring: Any, random_target: Path, tmp_path: Path) -> None:
    """The old drafter stays, and no tensor of an aborted update is used by the next one."""
    served = random_target / "redrafter"
    tensors = load_file(save_drafter_like(served, tmp_path / "new") / "model.safetensors")
    half = dict(list(tensors.items())[:3])
    for sent, message in (
        (half, "The weight update lacks .*rnn_w.weight"),
        (tensors | {"lm_head.1.weight": torch.randn(VOCAB, 7)}, "lm_head.1.weight in The weight update has shape"),
        (tensors | {"rnn_u.bias": torch.full((64,), torch.nan)}, "rnn_u.bias in the weight update holds NaN"),
        (tensors | {"extra.weight": torch.randn(3)}, "holds extra.weight, which its config does not imply"),
        (tensors | {"rnn_u.bias": torch.zeros(64, dtype=torch.int32)}, "rnn_u.bias .* type torch.int32: send floating"),
    ):
        transferring.start_draft_weight_update()
        send(transferring, sent, tmp_path / "sent")
        with pytest.raises(CheckpointError, match=message):
            transferring.finish_weight_update()
        assert_drafting_with(transferring, served)
    transferring.start_draft_weight_update()
    send(transferring, half, tmp_path / "sent")
    with pytest.raises(Exception, match="No such file"):
        transferring.update_weights({"update_info": {"path": str(tmp_path / "gone")}})
    other = save_drafter_like(served, tmp_path / "other", seed=2)
    transferring.start_draft_weight_update()
    rest = {name: tensor for name, tensor in load_file(other / "model.safetensors").items() if name not in half}
    send(transferring, rest, tmp_path / "sent")
    with pytest.raises(CheckpointError, match="lacks"):
        transferring.finish_weight_update()
    assert_drafting_with(transferring, served)


def test_a_trainer_sends_a_target(
    transferring: Any, make_engine: MakeEngine, random_target: Path, tmp_path: Path
) -> None:
    """By the same transfer, which does not use the runner's own reloading."""
    old = load_file(random_target / "model.safetensors")
    expected = tokens(generate(transferring, PROMPTS, SAMPLING))
    for sent, same in ((changed(old), False), (old, True)):
        transferring.start_weight_update()
        send(transferring, sent, tmp_path / "target")
        transferring.finish_weight_update()
        transferring.reset_prefix_cache()
        assert_drafting_with(transferring, random_target / "redrafter")
        assert (tokens(generate(transferring, PROMPTS, SAMPLING)) == expected) == same


def changed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another target; the embedding, which the drafter shares, changes most."""
    return {name: tensor * 1.5 + 0.1 if "embed_tokens" in name else tensor * 0.9 for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def tied_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_random_llama(tmp_path_factory.mktemp("tied") / "target", tie_word_embeddings=True)
    save_random_drafter(path / "redrafter")
    return path


@pytest.mark.parametrize("spec", [TREE, PROJECTED], ids=["embedding", "projected"])
@pytest.mark.parametrize("kind", ["untied", "tied", "lora"])
def test_drafts_follow_the_targets_new_weights(
    make_engine: MakeEngine, random_target: Path, tied_target: Path, spec: dict[str, Any], kind: str
) -> None:
    """From an iterator and then from disk; at the same addresses, with plain vLLM's tokens after the same reload."""
    target, options = (tied_target if kind == "tied" else random_target), (LORA if kind == "lora" else {})
    plain, llm = make_engine(target, **options), make_engine(target, spec, **options)
    where = addresses(runner(llm).speculator), runner(llm).speculator.embedding.data_ptr()
    before = tokens(generate(plain, PROMPTS, SAMPLING))
    new = changed(load_file(target / "model.safetensors"))
    outputs = []
    for engine in (plain, llm):
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(new.items())})
        engine.reset_prefix_cache()
        outputs.append(tokens(generate(engine, PROMPTS, SAMPLING)))
    try:
        assert outputs[0] == outputs[1] != before
        assert_inputs_are_of_the_target(llm, target / "redrafter")
        assert runner(llm).speculator.embedding.data_ptr() == where[1]
    finally:
        for engine in (plain, llm):
            engine.collective_rpc("reload_weights", kwargs={"weights_path": str(target)})
            engine.reset_prefix_cache()
    assert tokens(generate(llm, PROMPTS, SAMPLING)) == before
    assert_drafting_with(llm, target / "redrafter")
    assert addresses(runner(llm).speculator) == where[0]


class Forgetful:
    """vLLM's sleep: at level 2 nothing on the device is kept."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def suspend(self, level: int) -> None:
        for tensor in self.tensors.values() if level == 2 else ():
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    def resume(self, tags: list[str] | None) -> None:
        pass


@contextmanager
def sleeping_as_on_a_gpu(llm: Any, backend: Forgetful) -> Iterator[Any]:
    """vLLM's CPU worker ignores sleep; here the GPU worker's methods, its base class's, run without a GPU."""
    nothing = patch.multiple(torch.accelerator, synchronize=lambda: None, get_memory_info=lambda: (1, 1))
    with nothing, patch.object(worker(llm), "_sleep_mode_backend", backend):
        yield worker(llm)


@pytest.mark.parametrize("level", [1, 2])
def test_the_drafter_survives_sleep(make_engine: MakeEngine, random_target: Path, level: int) -> None:
    llm = make_engine(random_target, PROJECTED)
    with weights_in_tensors(llm) as speculator:
        expected = {name: tensor.clone() for name, tensor in speculator.tensors().items()}
        assert {"token_weight", "token_inputs", "output.weight"} <= expected.keys()
        with sleeping_as_on_a_gpu(llm, Forgetful(speculator.tensors())) as own:
            Worker.sleep(own, level)
            assert torch.isnan(speculator.embedding).all() == (level == 2)
            Worker.wake_up(own, ["weights"])
            Worker.wake_up(own, ["kv_cache"])
        assert all(torch.equal(tensor, expected[name]) for name, tensor in speculator.tensors().items())


def test_a_cpu_ignores_sleep(make_engine: MakeEngine, random_target: Path) -> None:
    """vLLM logs this and does not sleep."""
    llm = make_engine(random_target, PROJECTED)
    expected = tokens(generate(llm, PROMPTS, SAMPLING))
    for level in (1, 2):
        llm.sleep(level)
        llm.wake_up()
        assert tokens(generate(llm, PROMPTS, SAMPLING)) == expected
