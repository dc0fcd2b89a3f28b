# SPDX-License-Identifier: Apache-2.0
"""The examples of serving: a batch offline, and the clients against the server of two replicas."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from redrafter_vllm.bench.child import running, tail
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.model.drafter import Drafter, DrafterConfig
from redrafter_vllm.utils.local_server import HOST, free_port, is_healthy
from tests.deploy.prometheus import scraping
from tests.deploy.test_monitoring import queries
from tests.engine.chat import TEMPLATE
from tests.examples.files import ENVIRONMENT, command, run
from tests.paths import ASSET, ROOT

QUESTION = "a loop"
REPLICAS = ("0", "1")
ADAPTIVE = re.compile(
    "redrafter_(plain_microseconds|adaptive_microseconds|passed_microseconds|expected_thousandths|skipped_rounds)"
)
START_SECONDS = 500.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two replicas."""
    port, log = free_port(), tmp_path_factory.mktemp("replicas") / "log"
    options = f"--host {HOST} --port {port} --dtype float32 --max-model-len 256 --max-num-seqs 8 --enforce-eager"
    # One front end instead of one for each replica: it costs a core ten seconds to start.
    options += f" --kv-cache-memory-bytes {1 << 26} --api-server-count 1"
    fixed = ["--speculative-config", json.dumps({"adaptive": False, "prompt_lookup": False})]  # steps are counted
    given = command("two_replicas.sh", ASSET, *options.split(), *fixed, "--chat-template", TEMPLATE)
    started = time.monotonic()
    variables = {**ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}
    with running(given, log, variables, ROOT) as process:
        while not is_healthy(f"http://{HOST}:{port}"):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                pytest.fail(tail(log))
            time.sleep(0.5)
        yield f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def client(server: str) -> OpenAI:
    return OpenAI(base_url=f"{server}/v1", api_key="none")


def save_random(config: DrafterConfig, path: Path) -> Path:
    torch.manual_seed(1)
    drafter = Drafter(config)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drafter.save_pretrained(path)
    return path


def steps_with_drafts(server: str, replica: str) -> float:
    metrics = urllib.request.urlopen(f"{server}/metrics").read().decode()
    counted = rf'^vllm:redrafter_verifications_total{{[^}}]*engine="{replica}"[^}}]*}} (\S+)$'
    return sum(map(float, re.findall(counted, metrics, re.MULTILINE)))


def answer(server: str, client: OpenAI, replica: str) -> tuple[str, float]:
    """A replica's answer to the question, and its number of steps with drafts."""
    before = steps_with_drafts(server, replica)
    said = client.chat.completions.create(
        model=str(ASSET),
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=40,
        temperature=0.0,
        extra_headers={"X-data-parallel-rank": replica},
    )
    return said.choices[0].message.content or "", steps_with_drafts(server, replica) - before


def test_the_streamed_chat_has_the_text_of_plain_decoding(server: str, client: OpenAI) -> None:
    printed = run("openai_streaming.py", QUESTION, server).stdout
    plain = client.chat.completions.create(
        model=str(ASSET),
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=100,
        temperature=0.0,
        extra_body={"redrafter": {"enabled": False}},
    )
    text, _, counts = printed.rpartition("\n[")
    assert text == plain.choices[0].message.content
    found = re.fullmatch(r"(\d+) tokens in (\d+) chunks\]\n", counts)
    assert found is not None
    assert int(found[1]) == 100 and int(found[2]) < 80


def test_each_replica_drafts_and_gets_new_drafters(server: str, client: OpenAI, tmp_path: Path) -> None:
    served = ASSET / "redrafter"
    config = check_checkpoint(served)
    trained = {replica: answer(server, client, replica) for replica in REPLICAS}
    assert trained["0"] == trained["1"]
    text, steps = trained["0"]
    assert 0 < steps < 33

    printed = run("hot_swap.py", save_random(config, tmp_path / "untrained"), server).stdout
    assert f"{server} drafts with" in printed
    for replica in REPLICAS:
        same, more = answer(server, client, replica)
        assert same == text and more > 36

    narrow = DrafterConfig(config.vocab_size, config.hidden_size, config.exit_dim, config.num_draft_layers - 1)
    refused = run("hot_swap.py", save_random(narrow, tmp_path / "narrow"), server, status=1).stderr
    assert f"{server} keeps its drafter" in refused and "num_draft_layers 1 instead of 2" in refused

    run("hot_swap.py", served, server)
    assert {replica: answer(server, client, replica) for replica in REPLICAS} == trained


def test_every_panel_of_the_dashboard_shows_the_replicas(server: str, client: OpenAI, tmp_path: Path) -> None:
    """With the Prometheus of `deploy/`: figures within their bounds, and by engine where a panel says so."""
    # This server's trees are fixed: what counts adaptive ones stays 0.
    panels = [query for query in queries() if not ADAPTIVE.search(query)]
    with scraping(server, tmp_path) as query:
        deadline = time.monotonic() + 120
        while empty := [panel for panel in panels if not shows_figures(query(panel))]:
            assert time.monotonic() < deadline, empty
            for replica in REPLICAS:
                answer(server, client, replica)
            time.sleep(1)
        tokens_per_step = query(panels[0])
    assert {line["metric"]["engine"] for line in tokens_per_step} == set(REPLICAS)
    assert all(1 < float(line["value"][1]) <= 5 for line in tokens_per_step)


def shows_figures(series: list[dict[str, Any]]) -> bool:
    return any(float(line["value"][1]) > 0 for line in series)  # NaN where nothing has been counted yet


@pytest.mark.engine
def test_a_batch_offline(tmp_path: Path) -> None:
    prompts = ["import os", "def read(self, size=-1):", "class Test"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    # In the process of the command the engine starts sooner.
    done = run("offline_batch.py", tmp_path / "prompts.txt", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["prompt"] for line in answers] == prompts
    assert all(line["text"].strip() for line in answers)
    (measured,) = re.findall(r"^(\d+\.\d+) tokens per step", done.stderr, re.MULTILINE)
    assert 1.5 < float(measured) <= 5.0
