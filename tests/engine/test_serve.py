# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` as a user starts it: its own processes, the flag, HTTP, the OpenAI client."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from redrafter_vllm.integration.metrics_prometheus import ACCEPTED, COUNTERS
from tests.engine.conftest import MakeEngine
from tests.engine.generation import generate, params, tokens

pytestmark = pytest.mark.engine

PROMPTS = ["def read(self, size=-1):\n", "import os\n\n\nclass ", "    for key, value in ", "try:\n    from "]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(asset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    options = "--dtype float32 --max-model-len 256 --max-num-seqs 8 --enforce-eager --kv-cache-memory-bytes 67108864"
    command = [Path(sys.executable).with_name("vllm"), "serve", asset, "--speculative-model", "redrafter"]
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port), "--host", "127.0.0.1", *options.split()],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")


def test_completions_are_those_of_plain_vllm(server: str, asset: Path, make_engine: MakeEngine) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")

    def complete(case: tuple[int, str]) -> str:
        index, prompt = case
        return (
            client.completions.create(
                model=str(asset), prompt=prompt, max_tokens=40, temperature=0.8 * (index % 2), seed=index
            )
            .choices[0]
            .text
        )

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(complete, enumerate(PROMPTS)))
    plain = make_engine(asset, skip_tokenizer_init=False)
    tokenizer = plain.get_tokenizer()
    sampling = [params(max_tokens=40, temperature=0.8 * (i % 2), seed=i) for i in range(len(PROMPTS))]
    expected = tokens(generate(plain, [tokenizer.encode(prompt) for prompt in PROMPTS], sampling))
    assert texts == [tokenizer.decode(out[0], skip_special_tokens=True) for out in expected]


def test_streaming_and_metrics(server: str, asset: Path) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    options = {"model": str(asset), "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text
    chunks = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunks) == whole
    # Several tokens in a chunk: otherwise nothing was accepted.
    assert len(chunks) < 40
    metrics = urllib.request.urlopen(f"{server}/metrics").read().decode()
    accepted = [line for line in metrics.splitlines() if line.startswith("vllm:spec_decode_num_accepted_tokens_total")]
    assert accepted and float(accepted[0].split()[-1]) > 0


def drafting_metrics(server: str) -> dict[str, float]:
    """Sums of our counters over their labels."""
    values: dict[str, float] = {}
    for line in urllib.request.urlopen(f"{server}/metrics").read().decode().splitlines():
        if line.startswith("vllm:redrafter_") and "_created" not in line:
            name, value = line.rsplit(" ", 1)
            assert 'engine="0"' in name and "model_name=" in name
            values[name.split("{")[0]] = values.get(name.split("{")[0], 0.0) + float(value)
    return values


def test_drafting_metrics_cross_the_processes(server: str, asset: Path) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    client.completions.create(model=str(asset), prompt=PROMPTS[0], max_tokens=30, temperature=0)
    values = drafting_metrics(server)
    assert values.keys() == {f"{name}_total" for name in (*COUNTERS, ACCEPTED)}
    assert values["vllm:redrafter_tokens_total"] > values["vllm:redrafter_verifications_total"] > 0
    assert 0 < values["vllm:redrafter_nodes_total"] <= values["vllm:redrafter_node_slots_total"]
    assert 0 < values["vllm:redrafter_draft_microseconds_total"] < values["vllm:redrafter_step_microseconds_total"]


def test_settings_in_the_body(server: str, asset: Path) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")

    def complete(redrafter: object) -> tuple[str, float]:
        before = drafting_metrics(server)["vllm:redrafter_verifications_total"]
        options = {"model": str(asset), "prompt": PROMPTS[0], "max_tokens": 30, "temperature": 0}
        text = client.completions.create(**options, extra_body={"redrafter": redrafter}).choices[0].text
        return text, drafting_metrics(server)["vllm:redrafter_verifications_total"] - before

    (text, verifications), (plain_text, none) = complete({"beam_width": 2}), complete({"enabled": False})
    assert plain_text == text
    assert verifications > 0 and none == 0
    with pytest.raises(BadRequestError, match="Unknown setting 'beams' in 'redrafter'"):
        complete({"beams": 2})
