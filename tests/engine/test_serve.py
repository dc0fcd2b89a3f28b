# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` as a user starts it: its own processes, the flag, HTTP, and vLLM's command line clients."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from openai import BadRequestError, OpenAI

from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.phases import REST
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.servers import ServedEngine
from redrafter_vllm.chat.answers import Server
from redrafter_vllm.integration.frontend.prometheus import ACCEPTED, COUNTERS
from redrafter_vllm.utils.local_server import free_port
from redrafter_vllm.watch.engine_trees import OPTIONS as RECORDING
from redrafter_vllm.watch.engine_trees import TreeReader
from redrafter_vllm.watch.measure import Question, measure, measure_plain
from redrafter_vllm.watch.recording import Recording
from tests.engine.chat import TEMPLATE, chat_prompts, texts
from tests.engine.conftest import MakeEngine
from tests.engine.generation import params
from tests.engine.new_weights import save_drafter_like

PROMPTS = ["def read(self, size=-1):\n", "import os\n\n\nclass ", "    for key, value in ", "try:\n    from "]


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "open a file"}],
    [{"role": "system", "content": "be terse"}, {"role": "user", "content": "import os"}],
    [
        {"role": "user", "content": "a loop"},
        {"role": "assistant", "content": "for x in y:"},
        {"role": "user", "content": "a class"},
    ],
]

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["module", "class", "function"]},
        "public": {"type": "boolean"},
        "lines": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["kind", "public", "lines"],
    "additionalProperties": False,
}

# Otherwise the tiny model fills a JSON object with blanks.
GRAMMARS = {"backend": "xgrammar", "disable_any_whitespace": True}
# Defaults of a request: the command line clients cannot set these.
DEFAULTS = {"temperature": 0, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def server(asset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    options = "--dtype float32 --max-model-len 256 --max-num-seqs 8 --enforce-eager --kv-cache-memory-bytes 67108864"
    own = ["--chat-template", TEMPLATE, "--override-generation-config", json.dumps(DEFAULTS)]
    own += ["--structured-outputs-config", json.dumps(GRAMMARS), *RECORDING]
    command = [Path(sys.executable).with_name("vllm"), "serve", asset, "--speculative-model", "redrafter"]
    # Drafting that adapts would pause with so small a target.
    command += ["--speculative-config", json.dumps({"adaptive": False, "prompt_lookup": False})]
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # with it a server has /collective_rpc
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port), "--host", "127.0.0.1", *options.split(), *own],
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


@pytest.fixture(scope="module")
def client(server: str) -> OpenAI:
    return OpenAI(base_url=f"{server}/v1", api_key="none")


@pytest.fixture(scope="module")
def plain(asset: Path, make_engine: MakeEngine) -> Any:
    return make_engine(asset, skip_tokenizer_init=False, structured_outputs_config=GRAMMARS)


def test_completions_are_those_of_plain_vllm(client: OpenAI, asset: Path, plain: Any) -> None:
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
        answers = list(pool.map(complete, enumerate(PROMPTS)))
    sampling = [params(max_tokens=40, temperature=0.8 * (i % 2), seed=i) for i in range(len(PROMPTS))]
    assert answers == texts(plain, [plain.get_tokenizer().encode(prompt) for prompt in PROMPTS], sampling)


def test_chat_is_that_of_plain_vllm(client: OpenAI, asset: Path, plain: Any) -> None:
    def chat(case: tuple[int, list[dict[str, str]]]) -> str:
        index, messages = case
        options: dict[str, Any] = {"max_tokens": 40, "temperature": 0.8 * (index % 2), "seed": index}
        if index == 2:
            chunks = list(
                client.chat.completions.create(
                    model=str(asset),
                    messages=messages,  # type: ignore[arg-type]
                    stream=True,
                    stream_options={"include_usage": True},
                    **options,
                )
            )
            assert chunks[-1].usage.completion_tokens == 40
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
            # Several tokens in a chunk.
            assert len([piece for piece in pieces if piece]) < 40
            return "".join(pieces)
        answer = client.chat.completions.create(model=str(asset), messages=messages, **options)  # type: ignore[arg-type]
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(chat, enumerate(CONVERSATIONS)))
    sampling = [params(max_tokens=40, temperature=0.8 * (i % 2), seed=i) for i in range(3)]
    assert answers == texts(plain, chat_prompts(plain, CONVERSATIONS), sampling)


def test_chat_by_a_json_schema(client: OpenAI, asset: Path, plain: Any) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    answer = client.chat.completions.create(
        model=str(asset),
        messages=CONVERSATIONS[0],  # type: ignore[arg-type]
        max_tokens=100,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "unit", "schema": SCHEMA, "strict": True}},
    )
    content = answer.choices[0].message.content or ""
    assert set(json.loads(content)) == {"kind", "public", "lines"}
    sampling = params(max_tokens=100, temperature=0, structured_outputs=StructuredOutputsParams(json=SCHEMA))
    assert [content] == texts(plain, chat_prompts(plain, CONVERSATIONS[:1]), sampling)


def test_streaming_and_metrics(server: str, client: OpenAI, asset: Path) -> None:
    options = {"model": str(asset), "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text
    chunks = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunks) == whole
    # Without a chunk of several tokens, nothing was accepted.
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
    before = drafting_metrics(server)["vllm:redrafter_tokens_total"]
    client.completions.create(model=str(asset), prompt=PROMPTS[0], max_tokens=30, temperature=0)
    values = drafting_metrics(server)
    # The first token came from the prompt's own step; tokens verified behind the thirtieth were not received.
    assert values["vllm:redrafter_tokens_total"] - before == 29
    assert values.keys() == {f"{name}_total" for name in (*COUNTERS, ACCEPTED)}
    assert values["vllm:redrafter_tokens_total"] > values["vllm:redrafter_verifications_total"] > 0
    assert 0 < values["vllm:redrafter_nodes_total"] <= values["vllm:redrafter_node_slots_total"]
    assert 0 < values["vllm:redrafter_draft_microseconds_total"] < values["vllm:redrafter_step_microseconds_total"]


def test_a_turn_of_the_benchmark(server: str, asset: Path, plain: Any, tmp_path: Path) -> None:
    """`redrafter bench serve`: what vLLM's client measures, and what the server's counters say."""
    stored = Prompts([*PROMPTS], [], True)
    stored.write(tmp_path / "prompts.jsonl")
    engine = ServedEngine(
        name="ReDrafter",
        url=server,
        model=str(asset),
        tokenizer=asset,
        prompts=tmp_path / "prompts.jsonl",
        adds_special_tokens=True,
        process=SimpleNamespace(pid=os.getpid(), poll=lambda: None),  # the server's own is the fixture's
        log=tmp_path / "server.log",
    )
    progress: list[int] = []
    assert 0 < engine.warm_up(Turn(2, 2, 8, ignore_eos=True, first=1)) <= 16  # at most all tokens one after the other
    found = engine.take(Turn(len(PROMPTS), 2, 30), progress.append)
    assert sum(progress) == len(PROMPTS)
    assert found["tokens"] == [30] * len(PROMPTS)
    sampling = [params(max_tokens=30, temperature=0.0)] * len(PROMPTS)
    assert found["outputs"] == texts(plain, [plain.get_tokenizer().encode(prompt) for prompt in PROMPTS], sampling)
    assert 1 < found["tokens_per_step"] <= 5
    assert found["tokens_per_step"] == pytest.approx(1 + sum(found["acceptance"]))
    assert found["tokens_per_step"] - 1 < found["nodes_per_step"] <= 16 and 0 <= found["skipped"] < 1
    assert all(
        0 < first < whole <= found["seconds"] for first, whole in zip(found["ttft"], found["latency"], strict=True)
    )
    assert set(found["milliseconds"]) == {"draft", "verify", REST} and min(found["milliseconds"].values()) >= 0


def test_settings_in_the_body(server: str, asset: Path) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")

    def complete(body: dict[str, object]) -> tuple[str, float]:
        before = drafting_metrics(server)["vllm:redrafter_verifications_total"]
        options = {"model": str(asset), "prompt": PROMPTS[0], "max_tokens": 30, "temperature": 0}
        text = client.completions.create(**options, extra_body=body).choices[0].text
        return text, drafting_metrics(server)["vllm:redrafter_verifications_total"] - before

    (text, verifications), *without = (
        complete(body)
        for body in (
            {"redrafter": {"beam_width": 2}},
            {"redrafter": {"enabled": False}},
            {"vllm_xargs": {"redrafter": '{"enabled": false}'}},
        )
    )
    assert verifications > 0 and without == [(text, 0)] * 2
    for body in ({"redrafter": {"beams": 2}}, {"vllm_xargs": {"redrafter": '{"beams": 2}'}}):
        with pytest.raises(BadRequestError, match="Unknown setting 'beams' in 'redrafter'"):
            complete(body)


def test_another_drafter_under_a_running_server(server: str, client: OpenAI, asset: Path, tmp_path: Path) -> None:
    """While a text streams: an untrained drafter, one that does not fit, and the first one again."""
    options = {"model": str(asset), "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    served = asset / "redrafter"
    untrained = save_drafter_like(served, tmp_path / "untrained")
    wrong = save_drafter_like(served, tmp_path / "wrong", num_draft_layers=3)

    def reload(path: Path) -> str:
        body = json.dumps({"method": "reload_drafter", "args": [str(path)]}).encode()
        request = urllib.request.Request(f"{server}/collective_rpc", body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60).read().decode()

    def complete() -> tuple[str, float]:
        """A text, and the number of steps that verified drafts for it."""
        before = drafting_metrics(server)["vllm:redrafter_verifications_total"]
        text = client.completions.create(**options).choices[0].text
        return text, drafting_metrics(server)["vllm:redrafter_verifications_total"] - before

    whole, steps = complete()
    pieces: list[str] = []
    for number, chunk in enumerate(client.completions.create(**options, stream=True)):
        pieces.append(chunk.choices[0].text)
        if number == 1:
            assert json.loads(reload(untrained)) == {"results": [None]}
        if number == 4:
            with pytest.raises(HTTPError) as caught:
                reload(wrong)
            assert "num_draft_layers 3 instead of 2" in caught.value.read().decode()
    assert "".join(pieces) == whole
    text, untrained_steps = complete()
    assert text == whole and untrained_steps > 36
    reload(served)
    assert complete() == (whole, steps)
    assert steps < 33


@pytest.mark.parametrize("is_text", [True, False], ids=["text", "chat"])
def test_watching(server: str, is_text: bool) -> None:
    """What `redrafter watch --url` records: the same tokens on both sides, and the tree of every step."""
    question = Question(PROMPTS[0], is_text, [], {"max_tokens": 24, "temperature": 0})
    plain, drafted = Recording("plain"), Recording("drafted")
    measure_plain(Server(server), question, plain, lambda: None)
    measure(Server(server), question, drafted, lambda: None)
    assert plain.tokens == drafted.tokens and len(plain.tokens) == len(plain.steps) == 24 > len(drafted.steps)
    assert drafted.no_trees == "" and drafted.steps[0].tree is None
    assert [step.tree.root for step in drafted.steps[1:] if step.tree] == [
        step.texts[-1] for step in drafted.steps[:-1]
    ]
    # What one request recorded is not kept for the next.
    reader = TreeReader(Server(server), "")
    reader.stop()
    assert reader.trees == []


def test_reported_trees_spell_the_answer(server: str) -> None:
    """Texts of the nodes as the server decodes them, against the stream's."""
    reader = TreeReader.start(Server(server), "watched")
    assert reader is not None
    question = Question(PROMPTS[0], True, [], {"max_tokens": 24, "temperature": 0, "request_id": "watched"})
    texts = [text for piece in question.ask(Server(server)) for text in piece.texts]
    reader.stop()
    place = 0
    for tree in reader.trees:
        accepted = [tree.nodes[node] for node in tree.path]
        assert texts[place : place + len(accepted)] == accepted[: len(texts) - place]
        place += tree.num_emitted
    assert place >= len(texts) == 24


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: str = "") -> None:
    """`vllm ARGUMENTS`, in this process: another one would spend ten seconds on imports."""
    from vllm.entrypoints.cli.main import main

    monkeypatch.setattr(sys, "argv", ["vllm", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    # The clients set handlers that would outlive them.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    main()


def test_the_complete_client(
    server: str, plain: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cli(monkeypatch, "complete", "--url", f"{server}/v1", "--max-tokens", "24", "--quick", PROMPTS[0])
    printed = capsys.readouterr().out
    sampling = params(max_tokens=24, temperature=0)
    assert texts(plain, [plain.get_tokenizer().encode(PROMPTS[0])], sampling)[0] in printed


def test_the_chat_client(
    server: str, plain: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two turns, typed in; the second follows the first one's answer."""
    run_cli(monkeypatch, "chat", "--url", f"{server}/v1", stdin="a loop\na class\n")
    printed = capsys.readouterr().out
    conversation, sampling = [], params(max_tokens=40, temperature=0)
    for line in ("a loop", "a class"):
        conversation.append({"role": "user", "content": line})
        answer = texts(plain, chat_prompts(plain, [conversation]), sampling)[0]
        assert answer in printed
        conversation.append({"role": "assistant", "content": answer})


def test_bench_serve(server: str, asset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "result.json"
    options = f"--base-url {server} --model {asset} --dataset-name random --random-input-len 12 --random-output-len 24"
    options += f" --num-prompts 4 --ignore-eos --save-result --result-dir {tmp_path} --result-filename {result.name}"
    run_cli(monkeypatch, "bench", "serve", *options.split())
    measured = json.loads(result.read_text())
    assert measured["completed"] == 4 and measured["failed"] == 0
    assert measured["total_output_tokens"] == 4 * 24
    # It asks the server for its counters of speculative decoding.
    assert measured["spec_decode_num_drafts"] > 0
    assert 1.0 <= measured["spec_decode_acceptance_length"] <= 5.0
