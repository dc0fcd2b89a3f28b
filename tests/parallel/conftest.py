# SPDX-License-Identifier: Apache-2.0
"""Engine cores run in the test's process; two workers have their own processes."""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# Two workers need two NUMA nodes, or must not be bound to cores.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import pytest
from transformers import AutoTokenizer

from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split
from tests.engine.generation import TREE
from tests.parallel.engines import ASSET, NUM_PROMPTS, Prompts, Run, engine, run


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    """Real text that the target was not trained on."""
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    texts = extract_prompts(split(load_corpus())[1], NUM_PROMPTS, max_chars=400)
    return [tokenizer.encode(text)[:120] for text in texts]


@pytest.fixture(scope="session")
def plain(prompts: Prompts) -> Run:
    """Plain vLLM on one worker."""
    with engine() as llm:
        return run(llm, prompts)


@pytest.fixture(scope="session")
def trees_on_one_worker(prompts: Prompts) -> Run:
    with engine(speculative_config=TREE) as llm:
        return run(llm, prompts)
