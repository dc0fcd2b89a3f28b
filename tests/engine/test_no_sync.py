# SPDX-License-Identifier: Apache-2.0
"""No host synchronisation in our part of a decode step, from the preparation of its inputs to the next trees."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from redrafter_vllm.adaptive import survival
from redrafter_vllm.integration.worker import sampler as sampler_module
from redrafter_vllm.integration.worker.model_state import RedrafterModelState
from redrafter_vllm.integration.worker.sampler import TreeSampler
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.engine.conftest import MakeEngine
from tests.engine.device_trees import device_trees
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner
from tests.engine.test_kernel_attention import tree_engine
from tests.models import VOCAB
from tests.no_sync import HostSyncError, allow_host_sync, forbid_host_sync

HOOKS = [
    (RedrafterModelState, "prepare_attn"),
    (RedrafterModelState, "prepare_inputs"),
    (TreeSampler, "__call__"),
    (RedrafterModelState, "postprocess_state"),
    (RedrafterSpeculator, "propose"),
]


def checked(owner: type, name: str, calls: list[str]) -> Any:
    original = getattr(owner, name)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        # vLLM's copies on the host, which we use.
        host = [x.seq_lens_cpu_upper_bound for x in args if hasattr(x, "seq_lens_cpu_upper_bound")]
        with forbid_host_sync(host):
            return original(self, *args, **kwargs)

    return patch.object(owner, name, run)


def unchecked(owner: Any, name: str) -> Any:
    """Not checked: vLLM's own function, on a CPU an interpreted kernel or its replacement."""
    original = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with allow_host_sync():
            return original(*args, **kwargs)

    return patch.object(owner, name, run)


@contextmanager
def checked_step(llm: Any) -> Iterator[list[str]]:
    """Yields a list of the hooks called; a host synchronisation in any of them is an error."""
    calls: list[str] = []
    with ExitStack() as stack:
        for owner, name in HOOKS:
            stack.enter_context(checked(owner, name, calls))
        stack.enter_context(unchecked(runner(llm).sampler, "sample"))
        for name in ("get_num_sampled_and_rejected", "compute_topk_scores", "async_copy_to_np"):
            stack.enter_context(unchecked(sampler_module, name))
        yield calls


@pytest.mark.parametrize("speculative", [TREE, CHAIN], ids=["tree", "chain"])
def test_steps_do_not_read_back(make_engine: MakeEngine, random_target: Path, speculative: dict[str, Any]) -> None:
    llm = make_engine(random_target, speculative)
    prompts = random_prompts(4, VOCAB)
    each = [params(temperature=0.0, ignore_eos=True, max_tokens=8, logprobs=2 * (n == 1)) for n in range(3)]
    each.append(params(temperature=0.8, seed=1, presence_penalty=0.5, max_tokens=8))
    with checked_step(llm) as calls:
        generate(llm, prompts, each)
    assert set(calls) == {name for _, name in HOOKS}


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@cpu_only
def test_steps_of_adaptive_trees_do_not_read_back(
    make_engine: MakeEngine, random_target: Path, backend: type[Any]
) -> None:
    """Where a GPU trims them; vLLM's own copy to the host is asynchronous, and it waits for the one before."""
    llm = tree_engine(make_engine, random_target, backend)
    with device_trees(llm), checked_step(llm) as calls, patch.object(survival, "REFIT_INTERVAL", 2):
        generate(
            llm,
            random_prompts(3, VOCAB, longest=30),
            params(temperature=0.0, ignore_eos=True, max_tokens=6, logprobs=1),
        )
        assert runner(llm).speculator.survival.num_fits > 0
    assert set(calls) == {name for _, name in HOOKS}


class Hook:
    """A hook that reads a value from the device."""

    def call(self, value: torch.Tensor) -> int:
        return int(value)


def test_a_hook_that_synchronises_is_found() -> None:
    calls: list[str] = []
    with checked(Hook, "call", calls), pytest.raises((HostSyncError, RuntimeError), match=SAYS):
        Hook().call(values()[0])
    assert calls == ["call"]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAYS = r"waits for the device|depends on values|synchroniz"


def values() -> torch.Tensor:
    return torch.tensor([1, 0, 2, 2], device=DEVICE)


FORBIDDEN: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "branch": lambda x: 1 if x[0] > 0 else 0,
    "bool_all": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.cpu().numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "argwhere": lambda x: torch.argwhere(x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "mask_assignment": lambda x: x.__setitem__(x > 0, x[x > 0]),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "repeat_interleave": lambda x: torch.repeat_interleave(x),
    "bincount": lambda x: torch.bincount(x),
    "equal": lambda x: torch.equal(x, x + 1),
    "index_by_value": lambda x: [0, 1, 2, 3][x[1]],
    "slice_by_value": lambda x: x[: x[0]],
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_check_finds_every_synchronisation(name: str) -> None:
    x = values()
    with forbid_host_sync(), pytest.raises((HostSyncError, RuntimeError), match=SAYS):
        FORBIDDEN[name](x)
    with forbid_host_sync(), allow_host_sync():
        FORBIDDEN[name](x)
    FORBIDDEN[name](x)


def test_the_check_allows_operations_that_do_not_wait() -> None:
    x = values()
    with forbid_host_sync():
        y = torch.where(x > 0, x, 0).cumsum(0)
        y[x] += 1
        y.masked_fill_(x > 0, 3).index_copy_(0, x[:1], x[1:2])
        torch.repeat_interleave(x, x, output_size=5)
        assert torch.from_numpy(np.arange(3)).max().item() == 2
    host = torch.arange(4)
    with forbid_host_sync([host]):
        assert host[1:].max().item() == 3 and host.tolist() == [0, 1, 2, 3]
