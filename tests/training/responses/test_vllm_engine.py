# SPDX-License-Identifier: Apache-2.0
"""Response generation with vLLM, whatever the shards, workers and kills. One engine here, one in Ray."""

import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from redrafter_training import evaluate
from redrafter_training.respond import main
from redrafter_training.responses import vllm_engine
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.engine import Completion, Request, continue_prompts
from redrafter_training.responses.generator import ResponseGenerator
from redrafter_training.responses.ray_workers import Crew, Shard, generate_on_ray
from redrafter_training.responses.records import Task, TaskResult
from redrafter_training.responses.store import ResponseStore
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.responses.vllm_engine import VllmEngine, make_engine, make_generator
from redrafter_training.run import response_generation as command
from redrafter_training.target.model import TargetModel
from redrafter_training.target.properties import read_facts
from redrafter_training.utils.command import WorkersFailedError
from tests.engine.generation import cpu_only, runner
from tests.models import HOSTILE_GENERATION, save_random_drafter, save_random_llama
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

ray = pytest.importorskip("ray", reason="Ray is not installed (the `train` extra)")
# The workers cannot import this module by name.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.engine

ENGINE = {"kv_cache_memory_bytes": 1 << 25, "max_num_seqs": 8, "enforce_eager": True}
# Among 261 tokens these let about half of the responses end by themselves.
ENDS = [1, 4, 37, 101, 170, 222]


class Counted:
    """The engine, with a count of batches, and the batch at which it ends as a kill would."""

    seeds_each = True

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.batches = 0
        self.last = sys.maxsize

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        if self.batches >= self.last:
            raise KeyboardInterrupt
        self.batches += 1
        return self.engine(requests)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("respond") / "target"
    tokenizer = byte_tokenizer(CHATML)
    save_random_llama(path, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=ENDS)
    stored = path / "generation_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | HOSTILE_GENERATION))
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four of one turn and six of two, and one that is too long."""
    records = [[f"question {n}" * (1 + n % 3)] + ["data's own", "and then?"] * (n % 5 == 0) for n in range(30)]
    records.insert(7, ["long" * 40])
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    turns = [[{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(r)] for r in records]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    return path


@pytest.fixture(scope="module")
def job(target: Path, conversations: Path) -> ResponseJob:
    return ResponseJob(
        target=str(target),
        data=str(conversations),
        out=Path("unset"),
        window=224,
        temperatures=(0.0, 0.9),
        shard_size=8,
        target_dtype="float32",
        engine=ENGINE,
    )


@pytest.fixture(scope="module")
def engine(job: ResponseJob, target: Path) -> Counted:
    return Counted(make_engine(job, AutoTokenizer.from_pretrained(target), window=job.window, tokens=0))


@pytest.fixture(autouse=True)
def one_engine(engine: Counted, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    monkeypatch.setattr(command, "make_generator", lambda job, texts: ResponseGenerator(job, tokenizer, engine))


def arguments(job: ResponseJob, out: Path, *further: str) -> list[str]:
    return [
        *("--target", job.target, "--data", job.data, "--out", str(out), "--window", str(job.window)),
        *("--temperatures", "[0.0,0.9]", "--shard-size", str(job.shard_size), "--target-dtype", "float32"),
        *("--engine", json.dumps(ENGINE), *further),
    ]


@pytest.fixture(scope="module")
def whole(job: ResponseJob, engine: Counted, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The responses of one uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "responses"
    tokenizer = AutoTokenizer.from_pretrained(target)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "make_generator", lambda job, texts: ResponseGenerator(job, tokenizer, engine))
        assert main(arguments(job, out)) == 0
    return out


def texts(out: Path) -> list[TaskResult]:
    return list(ResponseStore(out).read_all())


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("shard-*"))}


def test_chat_prompts_of_an_evaluation_are_answered_with_it(
    engine: Counted, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, drafter = tmp_path / "prompts.jsonl", tmp_path / "drafter"
    prompts.write_text("".join(json.dumps({"turns": [f"question {n}", "Why?"]}) + "\n" for n in range(5)))
    save_random_drafter(drafter, vocab_size=read_facts(str(target)).vocab_size)
    monkeypatch.setattr(vllm_engine, "make_engine", lambda *args, **options: engine)
    places = ["--target", str(target), "--drafter", str(drafter), "--prompts", str(prompts)]
    arguments = [*places, "--new-tokens", "16", "--beam-width", "4", "--beam-length", "2"]
    before = engine.batches
    assert evaluate.main([*arguments, "--card"]) == 0
    assert engine.batches == before + 2, "one call a turn"
    by_vllm = capsys.readouterr().out
    assert "10 responses of the target in float32 with" in (drafter / "README.md").read_text()
    assert evaluate.main([*arguments, "--engine", "transformers"]) == 0
    assert engine.batches == before + 2 and capsys.readouterr().out == by_vllm
    monkeypatch.setattr(vllm_engine, "has_vllm", lambda: False)
    assert evaluate.main([*arguments, "--engine", "vllm"]) == 1
    assert "vLLM, which is not installed" in capsys.readouterr().err


@cpu_only
def test_a_cpu_has_the_runner_with_native_kernels(engine: Counted) -> None:
    assert type(runner(engine.engine._engine)).__module__ == "vllm.v1.worker.cpu_model_runner"
    assert "VLLM_USE_V2_MODEL_RUNNER" not in os.environ, "for other engines of this process"


def test_greedy_responses_are_the_targets(whole: Path, target: Path) -> None:
    model = TargetModel(AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32))
    tokenizer = AutoTokenizer.from_pretrained(target)
    read = texts(whole)
    assert [text.index for text in read] == list(range(31))
    greedy = [response for text in read if text.temperature == 0 for response in text.responses]
    assert 5 < sum(response.ended for response in greedy) < len(greedy)
    for response in greedy:
        prompt = torch.tensor(response.prompt_ids)
        (continued,) = continue_prompts(TransformersEngine(model), [prompt], 224 - len(prompt))
        assert continued[len(prompt) :].tolist() == list(response.token_ids)
        assert response.ended == (response.token_ids[-1] in ENDS)
        # The top-1 token at every place, whatever the target's generation config holds.
        whole_text = torch.tensor([*response.prompt_ids, *response.token_ids])
        best = model.outputs(whole_text[None, :-1]).logits[0, len(prompt) - 1 :].argmax(-1)
        assert best.tolist() == list(response.token_ids)
        assert response.text == tokenizer.decode(response.token_ids, skip_special_tokens=True)
    sampled = [response for text in read if text.temperature == 0.9 for response in text.responses]
    firsts = [model.model(input_ids=torch.tensor([a.prompt_ids])).logits[0, -1].argmax() for a in sampled]
    assert any(first != response.token_ids[0] for first, response in zip(firsts, sampled, strict=True))
    assert any(len(text.responses) == 2 for text in read)


def test_responses_stop_once_they_repeat_themselves(engine: Counted) -> None:
    draw = random.Random(0)
    prompts = [tuple(draw.choices(range(5, 250), k=4)) for _ in range(32)]
    free, bound = (engine([Request(prompt, 200, 0.0, 0, repeat) for prompt in prompts]) for repeat in (0, 2))
    stopped = 0
    for long, short in zip(free, bound, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        if len(short.token_ids) < len(long.token_ids):
            stopped += 1
            assert not short.ended
            # It ends with a stretch of 2 to 4 tokens twice.
            assert any(short.token_ids[-n:] == short.token_ids[-2 * n : -n] for n in (2, 3, 4))
    assert stopped


def test_greedy_responses_are_computed_first(engine: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request((5, 9 + n), 6, temperature=(0.9, 0.0)[n % 2], seed=n) for n in range(5)]
    alone = [engine([request])[0] for request in requests]
    computed: list[float] = []
    generate = engine.engine._engine.generate

    def watched(prompts: Any, sampling: Any, **options: Any) -> Any:
        computed.extend(each.temperature for each in sampling)
        return generate(prompts, sampling, **options)

    monkeypatch.setattr(engine.engine._engine, "generate", watched)
    assert engine(requests) == alone
    assert computed == [0, 0, 0.9, 0.9, 0.9]


def test_shards_and_order_change_no_text(whole: Path, job: ResponseJob, tmp_path: Path) -> None:
    assert main(arguments(job, tmp_path / "out", "--shard-size", "5")) == 0
    assert texts(tmp_path / "out") == texts(whole)


def test_kill_and_resume(
    whole: Path, job: ResponseJob, engine: Counted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    engine.batches, engine.last = 0, 4  # of two per shard: both rounds of the first two
    try:
        assert main(arguments(job, out)) == 130
    finally:
        engine.last = sys.maxsize
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert sorted(before) == ["shard-00000.jsonl", "shard-00001.jsonl"]
    assert main(arguments(job, out, "--seed", "1")) == 1
    assert "seed: 0 -> 1" in capsys.readouterr().err

    engine.batches = 0
    assert main(arguments(job, out)) == 0
    shown = capsys.readouterr().out
    assert "4 shards, 2 of them finished before" in shown
    assert "1  skipped: prompt too long" in shown and "conversations.jsonl:8" in shown
    assert shards(out) == shards(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    resumed = engine.batches
    assert 2 <= resumed <= 4
    assert main(arguments(job, out)) == 0
    assert engine.batches == resumed
    assert "none now" in capsys.readouterr().out


def test_source_code_through_the_command(job: ResponseJob, corpus_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = replace(job, data=str(corpus_root))
    assert main(arguments(source, out, "--count", "6", "--max-prompt", "30", "--temperatures", "[0.0]")) == 0
    read = texts(out)
    assert [text.held_out for text in read] == [False] * 6 + [True]
    assert all(17 <= len(text.responses[0].prompt_ids) <= 31 for text in read)


def test_errors_have_a_message(
    job: ResponseJob,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.batches = 0
    nothing = tmp_path / "nothing.jsonl"
    nothing.touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    for wrong, message in (
        (["--target", str(tmp_path / "nowhere")], "nowhere cannot be loaded"),
        (["--data", str(nothing)], "holds no records"),
        (["--window", "4096"], "at most 1024 tokens"),
        (["--out", str(tmp_path / "taken")], "something else"),
    ):
        assert main([*arguments(job, tmp_path / "out"), *wrong]) == 1
        assert message in capsys.readouterr().err
    assert engine.batches == 0
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(command, "make_generator", make_generator)
    assert main([*arguments(job, tmp_path / "out"), "--engine", '{"no_such_argument": 1}']) == 1
    assert "vLLM cannot start" in capsys.readouterr().err


def tasks(count: int) -> list[Task]:
    return [Task(n, str(n), False, prompt_ids=(n,)) for n in range(count)]


def test_a_dead_workers_shard_is_generated_again(ray_session: None, tmp_path: Path) -> None:
    def fragile(name: str, max_failures: int) -> list[tuple[int, list[TaskResult]]]:
        killed = tmp_path / name

        def generate(given: Sequence[Task]) -> list[TaskResult]:
            if given[0].index == 2 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return [TaskResult(task.index, task.where, False, 0.0, ()) for task in given]

        parts = [Shard(n, tuple(tasks(6)[2 * n : 2 * n + 2])) for n in range(3)]
        return sorted(generate_on_ray(lambda: generate, parts, Crew(max_failures=max_failures)))

    made = fragile("once", 1)
    assert [(number, [text.index for text in texts]) for number, texts in made] == [
        (0, [0, 1]),
        (1, [2, 3]),
        (2, [4, 5]),
    ]
    with pytest.raises(WorkersFailedError, match=r"finished shards are intact: The actor.*died"):
        fragile("too often", 0)


def test_failures_on_ray_have_a_message(ray_session: None) -> None:
    def no_engine() -> None:
        raise MemoryError("no room for the engine")

    part = [Shard(0, tuple(tasks(1)))]
    with pytest.raises(WorkersFailedError, match="no room for the engine"):
        list(generate_on_ray(no_engine, part, Crew()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="8 workers need 8 CPUs, and the cluster has 2"):
        list(generate_on_ray(no_engine, part, Crew(8)))  # type: ignore[arg-type]


def test_ray_generates_the_same(
    ray_session: None, whole: Path, job: ResponseJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "make_generator", make_generator)
    assert main(arguments(job, tmp_path / "out", "--ray-address", "auto")) == 0
    assert shards(tmp_path / "out") == shards(whole)
