# SPDX-License-Identifier: Apache-2.0
"""Plain vLLM on the CPU: the stand-ins change no token and no log-probability, and runner V1 stays native."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from redrafter_cpu.rebind import vllm_version
from redrafter_cpu.standin import StandIn
from redrafter_cpu.table import rebindings
from tests.models import VOCAB, save_random_llama
from tests.tools.cpu_support.interpreted import needs_interpreter

pytestmark = [needs_interpreter, pytest.mark.engine]

PROMPTS = [[(7 * i * i + 3 * i + 11 * row) % VOCAB for i in range(length)] for row, length in enumerate((3, 17))]

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "seed": 5},
    "top_k": {"temperature": 0.9, "seed": 5, "top_k": 7},
    "top_p": {"temperature": 0.9, "seed": 6, "top_p": 0.8},
    "top_k_top_p": {"temperature": 1.0, "seed": 6, "top_k": 9, "top_p": 0.8},
    "min_p": {"temperature": 1.3, "seed": 7, "min_p": 0.1},
    "penalties": {
        "temperature": 0.7,
        "seed": 8,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
    },
    "bias": {"temperature": 0.8, "seed": 9, "logit_bias": {3: 4.0, 9: -100.0, 17: 2.0}},
    "allowed": {"temperature": 0.8, "seed": 10, "allowed_token_ids": [5, 6, 7, 8, 90]},
    "logprobs": {"temperature": 0.8, "seed": 11, "logprobs": 3},
    "prompt_logprobs": {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 2},
    "stop": {"temperature": 1.0, "seed": 1, "stop_token_ids": list(range(0, VOCAB, 8))},
    "min_tokens": {"temperature": 1.0, "seed": 1, "min_tokens": 7, "stop_token_ids": list(range(0, VOCAB, 4))},
    "n": {"temperature": 1.0, "seed": 12, "n": 3},
}

Engine = Any
MakeEngine = Callable[[], Engine]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeEngine]:
    """Starts an engine in this process; the model is the same each time."""
    path = save_random_llama(tmp_path_factory.mktemp("plain") / "target")
    started: list[Engine] = []

    def start() -> Engine:
        started.append(_start(path))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield start
    for engine in started:
        engine.llm_engine.engine_core.shutdown()


def _start(path: Path) -> Engine:
    from vllm import LLM

    return LLM(
        str(path),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=32,
        max_logprobs=8,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 25,
        seed=0,
    )


@pytest.fixture(scope="module")
def engine(make: MakeEngine) -> Engine:
    return make()


def generate(engine: Engine, names: list[str]) -> list[Any]:
    """All that the requests give, with log-probabilities and ranks, one entry for each prompt and name."""
    from vllm import SamplingParams

    parameters = [
        SamplingParams(max_tokens=10, ignore_eos=True, detokenize=False, **SAMPLING[name])
        for name in names
        for _ in PROMPTS
    ]
    prompts = [{"prompt_token_ids": prompt} for _ in names for prompt in PROMPTS]
    return [
        (
            [(list(c.token_ids), c.logprobs, c.finish_reason, c.stop_reason) for c in output.outputs],
            output.prompt_logprobs,
        )
        for output in engine.generate(prompts, parameters, use_tqdm=False)
    ]


@contextmanager
def interpreted() -> Iterator[None]:
    """The kernels themselves in place of the stand-ins."""
    with pytest.MonkeyPatch.context() as patch:
        for entry in rebindings(vllm_version()):
            module = importlib.import_module(entry.module)
            bound = getattr(module, entry.name)
            if isinstance(bound, StandIn):
                patch.setattr(module, entry.name, bound.kernel)
        yield


def test_runner_v2_is_used(engine: Engine) -> None:
    assert engine.llm_engine.vllm_config.use_v2_model_runner


@pytest.mark.parametrize("names", [["greedy"], list(SAMPLING)], ids=["greedy", "all_in_one_batch"])
def test_the_stand_ins_change_nothing(engine: Engine, names: list[str]) -> None:
    ours = generate(engine, names)
    with interpreted():
        theirs = generate(engine, names)
    assert ours == theirs


def test_sampling_parameters_are_obeyed(engine: Engine) -> None:
    """Against the meaning of the parameters, not against the kernels."""
    allowed, stop, min_tokens = (generate(engine, [name]) for name in ("allowed", "stop", "min_tokens"))
    assert {token for outputs, _ in allowed for token in outputs[0][0]} <= {5, 6, 7, 8, 90}
    for outputs, _ in stop:
        tokens, _, reason, stopped_by = outputs[0]
        assert all(token % 8 for token in tokens[:-1])
        assert (reason, stopped_by) == ("stop", tokens[-1]) if tokens[-1] % 8 == 0 else ("length", None)
    assert all(len(outputs[0][0]) >= 7 and all(t % 4 for t in outputs[0][0][:6]) for outputs, _ in min_tokens)
    assert all(len({tuple(c[0]) for c in outputs}) == 3 for outputs, _ in generate(engine, ["n"]))


def test_runner_v1_works_with_native_kernels_only(
    make: MakeEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm.envs
    from triton.runtime.interpreter import GridExecutor

    expected = generate(engine, ["greedy"])
    # vLLM keeps what it read from the environment once an engine has started; an attribute comes before that.
    monkeypatch.setitem(vars(vllm.envs), "VLLM_USE_V2_MODEL_RUNNER", False)
    launches: list[str] = []
    monkeypatch.setattr(StandIn, "__getitem__", lambda self, grid: launches.append(self.kernel.fn.__name__))
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *a, **k: launches.append(self.fn.__name__))
    v1 = make()
    assert not v1.llm_engine.vllm_config.use_v2_model_runner
    assert [o[0][0][0] for o in generate(v1, ["greedy"])] == [o[0][0][0] for o in expected]
    names = ["top_k_top_p", "penalties", "logprobs"]
    assert len(generate(v1, names)) == len(names) * len(PROMPTS)
    assert launches == []
