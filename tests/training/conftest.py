# SPDX-License-Identifier: Apache-2.0
"""A tiny corpus, tokenizer and target that every test of the package can share."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from redrafter_training.target.model import TargetModel

FOLDERS = ("json", "email", "http", "logging", "zoneinfo", "venv")


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few packages of the standard library, enough to have files on both sides of the split."""
    root = tmp_path_factory.mktemp("corpus")
    for name in FOLDERS:
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / name, root / name)
    return root


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Callable[[], None]]:
    """A Ray cluster of two CPUs, the same one for all tests that a process runs. Its value starts it anew."""
    ray = pytest.importorskip("ray")

    def start() -> None:
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}}
        # Not a cluster that another process of the tests has started.
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)

    start()
    yield start
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, so that results agree to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_target() -> TargetModel:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        # Large weights: a distribution near uniform would leave nothing to learn and argmax to chance.
        initializer_range=0.5,
    )
    return TargetModel(LlamaForCausalLM(config))
