# SPDX-License-Identifier: Apache-2.0
"""vLLM's commands that start an engine, each in its own process, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.chat import TEMPLATE, chat_prompts, texts
from tests.engine.conftest import MakeEngine
from tests.engine.generation import params
from tests.models import save_random_drafter, save_random_llama

ENGINE = "--dtype float32 --max-model-len 256 --max-num-seqs 8 --enforce-eager --kv-cache-memory-bytes 67108864"


def vllm(*arguments: str, own_process: bool = True) -> str:
    """Output of `vllm ARGUMENTS`; the engine has its own process, as usual, or runs in that of the command."""
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1" if own_process else "0", "VLLM_LOGGING_LEVEL": "INFO"}
    environment = {**os.environ, **own}
    command = [str(Path(sys.executable).with_name("vllm")), *arguments, *ENGINE.split()]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_run_batch(asset: Path, make_engine: MakeEngine, tmp_path: Path) -> None:
    conversations = [[{"role": "user", "content": content}] for content in ("open a file", "import os")]
    requests, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with requests.open("w") as lines:
        for index, messages in enumerate(conversations):
            body = {"model": str(asset), "messages": messages, "max_tokens": 32, "temperature": 0.8 * index, "seed": 7}
            line = {"custom_id": str(index), "method": "POST", "url": "/v1/chat/completions", "body": body}
            lines.write(json.dumps(line) + "\n")
    vllm(
        *f"run-batch -i {requests} -o {results} --model {asset} --speculative-model redrafter".split(),
        *("--chat-template", TEMPLATE),
    )

    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, results.open())}
    plain = make_engine(asset, skip_tokenizer_init=False)
    sampling = [params(max_tokens=32, temperature=0.8 * index, seed=7) for index in range(2)]
    expected = texts(plain, chat_prompts(plain, conversations), sampling)
    assert [answers[str(index)]["choices"][0]["message"]["content"] for index in range(2)] == expected


@pytest.mark.engine
def test_bench_throughput(asset: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = f"--model {asset} --dataset-name random --random-input-len 12 --random-output-len 16 --num-prompts 4"
    printed = vllm(
        *f"bench throughput {options} --speculative-model redrafter --output-json {result}".split(), own_process=False
    )
    assert "speculative_config=RedrafterSpeculativeConfig(checkpoint=" in printed
    measured = json.loads(result.read_text())
    assert measured["num_requests"] == 4 and measured["tokens_per_second"] > 0


@pytest.mark.engine
def test_bench_latency(tmp_path: Path) -> None:
    """Its parser does not load plugins, and its prompts have ids up to 10,000."""
    target = save_random_llama(tmp_path / "target", vocab_size=10_000)
    save_random_drafter(target / "redrafter", vocab_size=10_000)
    result = tmp_path / "result.json"
    options = "--input-len 8 --output-len 8 --batch-size 2 --num-iters-warmup 1 --num-iters 2 --disable-detokenize"
    printed = vllm(
        *f"bench latency --model {target} {options} --skip-tokenizer-init --output-json {result}".split(),
        "--speculative-config",
        json.dumps({"model": "redrafter"}),
        own_process=False,
    )
    assert "speculative_config=RedrafterSpeculativeConfig(checkpoint=" in printed
    assert len(json.loads(result.read_text())["latencies"]) == 2
