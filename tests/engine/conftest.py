# SPDX-License-Identifier: Apache-2.0
"""Engines run inside the test process, where they start in a second and tests can inspect them."""

import os

from tests.paths import ASSET

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests import cpu_kernels
from tests.models import save_random_drafter, save_random_llama

MakeEngine = Callable[..., Any]

_ENGINES: dict[str, Any] = {}


@pytest.fixture(scope="session")
def make_engine() -> MakeEngine:
    """`make_engine(model, speculative=None, **options)`: one `LLM` per distinct call, shared by the session's tests.

    Calls with another choice of linear kernels are distinct.
    """
    from vllm import LLM

    def make(model: Path, speculative: dict[str, Any] | None = None, **options: Any) -> Any:
        defaults: dict[str, Any] = dict(
            dtype="float32",
            max_model_len=512,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            enforce_eager=True,
            skip_tokenizer_init=True,
            kv_cache_memory_bytes=1 << 25,  # of each of some hundred engines
            gpu_memory_utilization=0.1,  # this much must be free on a GPU, even if an engine needs less
            seed=0,
        )
        if speculative is not None and speculative.get("method", "redrafter") == "redrafter":
            # A pause of drafting would hide what a test is about, and random drafters earn one; so would copies of the
            # text, which are accepted where a drafter's tokens are not.
            speculative = {"adaptive": False, "prompt_lookup": False, **speculative}
        key = json.dumps([str(model), speculative, options, cpu_kernels.chosen()], sort_keys=True, default=str)
        if key not in _ENGINES:
            with keep_async_scheduling() if options.get("async_scheduling") else nullcontext():
                _ENGINES[key] = LLM(str(model), speculative_config=speculative, **{**defaults, **options})
        return _ENGINES[key]

    return make


@pytest.fixture(scope="session", autouse=True)
def kept_engines() -> Iterator[None]:
    """Keep engines that a test made without `make_engine`, too.

    vLLM shuts an engine down once it is garbage, whenever that is found, and with it the process groups that all
    engines of the process share. The others then fail in their next step.
    """
    from vllm.v1.engine.core_client import InprocClient

    kept: list[InprocClient] = []
    start = InprocClient.__init__

    def keep(client: InprocClient, *args: Any, **kwargs: Any) -> None:
        start(client, *args, **kwargs)
        kept.append(client)

    with patch.object(InprocClient, "__init__", keep):
        yield


@contextmanager
def keep_async_scheduling() -> Iterator[None]:
    """Keep asynchronous scheduling on, which vLLM's CPU platform switches off, as a CPU does not profit from it.

    Order of calls, placeholders and late results are then those of a GPU, but nothing runs in parallel.
    """
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        chosen = vllm_config.scheduler_config.async_scheduling
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = chosen

    with patch.object(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)):
        yield


@pytest.fixture(params=cpu_kernels.CHOICES)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """vLLM's kernels for linear layers on a processor without AMX, and on one with it."""
    if torch.version.cuda is not None:
        if request.param != cpu_kernels.CHOICES[0]:
            pytest.skip("chooses among a CPU's kernels")
        yield request.param
        return
    with cpu_kernels.linear_kernels(request.param):
        yield request.param


@pytest.fixture(params=["triton", "flash"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """A GPU's attention backend, used by engines built in the test; vLLM caches its choice per process."""
    from vllm.v1.attention import selector

    from redrafter_vllm.integration.attention import select
    from redrafter_vllm.integration.attention.flash import FlashTreeBackend
    from redrafter_vllm.integration.attention.triton import TritonTreeBackend
    from tests.integration.attention.fake_flash import FakeFlash

    monkeypatch.setenv(select.CPU_SWITCH, request.param)
    selector._cached_get_attn_backend.cache_clear()
    if request.param == "triton":
        yield TritonTreeBackend
    else:
        # In fp32, unlike the real one, so that its tokens can be compared.
        FakeFlash(monkeypatch, (8, 0)).dtypes += (torch.float32,)
        monkeypatch.setattr(FlashTreeBackend, "supported_dtypes", [torch.float32])
        monkeypatch.setitem(select._ON_CPU, "flash", select.FLASH)
        yield FlashTreeBackend
    selector._cached_get_attn_backend.cache_clear()


@pytest.fixture(scope="session")
def random_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a random drafter beside it."""
    path = save_random_llama(tmp_path_factory.mktemp("random") / "target")
    save_random_drafter(path / "redrafter")
    return path


@pytest.fixture(scope="session")
def asset() -> Path:
    """The committed target, trained on real text, with its trained drafter beside it."""
    assert (ASSET / "model.safetensors").is_file(), "the test asset is part of the repository"
    return ASSET


def pytest_unconfigure() -> None:
    """Skip garbage collection at exit: every engine runs it several times, which takes longer than the tests."""
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]
