# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with `vllm bench serve` as its client; what only the server knows comes from its /metrics."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request

from redrafter_vllm.bench.child import ChildError, running, tail
from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.engine import START_SECONDS, TURN_SECONDS, Finished
from redrafter_vllm.bench.fleet import TICK, Engine, Waiting
from redrafter_vllm.bench.load import most_at_a_time
from redrafter_vllm.bench.phases import REST
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.settings import Plan
from redrafter_vllm.chat.own_server import command
from redrafter_vllm.utils.local_server import HOST, free_port, is_healthy, vllm_program, without_proxy

MODEL_NAME = "target"
LOG_LINES = 400  # the reason stands far above the end of a server's log
# Names in /metrics. A counter by depth has one value for each.
GENERATED, FINISHED, ITERATIONS = (
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:iteration_tokens_total_count",
)
ACCEPTED_TOKENS, ACCEPTED_BY_DEPTH = (
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
)
VERIFICATIONS, VERIFIED_TOKENS, OWN_BY_DEPTH = (
    "vllm:redrafter_verifications_total",
    "vllm:redrafter_tokens_total",
    "vllm:redrafter_accepted_total",
)
DRAFTING, STEPS = "vllm:redrafter_draft_microseconds_total", "vllm:redrafter_step_microseconds_total"
DRAFTED, SKIPPED = "vllm:spec_decode_num_draft_tokens_total", "vllm:redrafter_skipped_rounds_total"
DEPTH_LABELS = ("depth", "position")

Counts = Mapping[str, float]


def read_counts(text: str) -> dict[str, float]:
    """Counters of a server, summed over engines and reasons; by depth as `NAME:0`, `NAME:1` and so on."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = next((sample.labels[label] for label in DEPTH_LABELS if label in sample.labels), None)
            name = sample.name
            if label is not None:
                # The plugin's depths begin with 1, vLLM's positions with 0.
                name = f"{name}:{int(label) - ('depth' in sample.labels)}"
            found[name] = found.get(name, 0.0) + sample.value
    return found


def decoding(before: Counts, now: Counts) -> tuple[float | None, list[float]]:
    """Tokens per step and acceptance by depth between two states of the counters.

    A step is a pass of the target that decodes one request; the first token of a request comes from its prompt's pass.
    The plugin counts verifications and their tokens; tokens beside them come from steps without drafts, one from each.
    Of vLLM's other methods only accepted drafts are counted, those behind the end of a request included, which makes
    tokens per step a little too high.

    Returns:
        None and an empty list where no request had a second token.
    """
    since = {name: value - before.get(name, 0.0) for name, value in now.items()}
    tokens = since.get(GENERATED, 0.0) - since.get(FINISHED, 0.0)
    if tokens <= 0:
        return None, []
    if since.get(VERIFICATIONS):
        steps = since[VERIFICATIONS] + tokens - since[VERIFIED_TOKENS]
        name = OWN_BY_DEPTH
    else:
        steps = tokens - since.get(ACCEPTED_TOKENS, 0.0)
        name = ACCEPTED_BY_DEPTH
    accepted: list[float] = []
    while (key := f"{name}:{len(accepted)}") in since:
        accepted.append(since[key] / steps)
    while accepted and not accepted[-1]:
        accepted.pop()
    return tokens / steps, accepted


def drafts(before: Counts, now: Counts, tokens_per_step: float | None) -> dict[str, float | None]:
    """`nodes_per_step` and `skipped` as `closed_loop.Turn.answer` has them, but steps with prompts count, too.

    Args:
        before: State of the counters when the turn began.
        now: When it had ended.
        tokens_per_step: What `decoding` has found.
    """
    since = {name: value - before.get(name, 0.0) for name, value in now.items()}
    nodes = skipped = None
    if tokens_per_step is not None and DRAFTED in since:
        nodes = since[DRAFTED] * tokens_per_step / (since[GENERATED] - since[FINISHED])
    if since.get(ITERATIONS) and SKIPPED in since:
        skipped = since[SKIPPED] / since[ITERATIONS]
    return {"nodes_per_step": nodes, "skipped": skipped}


def step_time(before: Counts, now: Counts, seconds: float) -> dict[str, float]:
    """Milliseconds of a mean step of the whole batch, prompts included, by what they were spent on."""
    since = {name: value - before.get(name, 0.0) for name, value in now.items()}
    iterations = since.get(ITERATIONS, 0.0)
    if not iterations:
        return {}
    whole, drafting, device = 1e3 * seconds, since.get(DRAFTING, 0.0) / 1e3, since.get(STEPS, 0.0) / 1e3
    if not device:
        return {"whole step": whole / iterations}
    return {
        "draft": drafting / iterations,
        "verify": (device - drafting) / iterations,
        REST: max(0.0, whole - device) / iterations,
    }


@dataclass(frozen=True)
class ServedEngine:
    """A running server."""

    name: str
    url: str
    model: str  # as requests name it
    tokenizer: Path
    prompts: Path  # a custom data set of `vllm bench serve`
    adds_special_tokens: bool
    process: Any  # a `Popen`
    log: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def take(self, turn: Turn, finished: Finished) -> dict[str, Any]:
        """See `Engine`; the progress comes from the server's count of finished requests."""
        self._reset()
        result = self.log.with_suffix(".client.json")
        result.unlink(missing_ok=True)
        before = self.counts()
        done, log = before.get(FINISHED, 0.0), self.log.with_suffix(".client.log")
        with running(self.client(turn, result), log, {"VLLM_PLUGINS": ""}) as client:
            until = time.monotonic() + TURN_SECONDS
            while client.poll() is None:
                if self.process.poll() is not None:
                    raise ChildError(f"the server of {self.name} ended.\n{tail(self.log, LOG_LINES)}")
                if time.monotonic() > until:
                    raise ChildError(f"vllm bench serve took more than {TURN_SECONDS:.0f} s.\n{tail(log, LOG_LINES)}")
                time.sleep(TICK)
                now = self.counts().get(FINISHED, 0.0)
                finished(int(now - done))
                done = now
        if client.returncode or not result.is_file():
            raise ChildError(f"vllm bench serve failed with status {client.returncode}.\n{tail(log, LOG_LINES)}")
        after = self.counts()
        finished(int(after.get(FINISHED, 0.0) - done))
        return self._figures(json.loads(result.read_text()), turn, before, after)

    def warm_up(self, turn: Turn) -> int:
        """See `Engine`. By plain requests: a client of its own would take longer to start than they take.

        Raises:
            ChildError: The server refused one.
        """
        lines = turn.prompts_of(self.prompts.read_text("utf-8").splitlines())
        before = self.counts().get(ITERATIONS, 0.0)
        common = {"model": self.model, "max_tokens": turn.max_tokens, "ignore_eos": turn.ignore_eos}
        bodies = [{**json.loads(line), **common, "temperature": turn.temperature, "seed": 0} for line in lines]
        with ThreadPoolExecutor(most_at_a_time([turn.load])) as pool:
            list(pool.map(self._complete, bodies))
        return int(self.counts().get(ITERATIONS, 0.0) - before)

    def _complete(self, body: Mapping[str, Any]) -> None:
        header = {"Content-Type": "application/json"}
        request = Request(f"{self.url}/v1/completions", json.dumps(body).encode(), header)
        try:
            with without_proxy().open(request, timeout=TURN_SECONDS) as answer:
                answer.read()
        except OSError as error:  # HTTP errors are among them
            raise ChildError(f"{self.name} refuses a request ({error}).\n{tail(self.log, LOG_LINES)}") from None

    def client(self, turn: Turn, result: Path) -> list[str]:
        """The command line of `vllm bench serve`."""
        body: dict[str, Any] = {"add_special_tokens": self.adds_special_tokens}
        if turn.temperature:
            body["seed"] = 0
        return [
            *(vllm_program(), "bench", "serve", "--backend", "openai", "--base-url", self.url),
            *("--model", self.model, "--tokenizer", str(self.tokenizer)),
            *("--dataset-name", "custom", "--dataset-path", str(self.prompts), "--skip-chat-template"),
            *("--disable-shuffle", "--no-oversample", "--custom-output-len", str(turn.max_tokens)),
            *("--num-prompts", str(turn.requests), "--max-concurrency", str(turn.load)),
            *("--temperature", str(turn.temperature), "--extra-body", json.dumps(body)),
            *(["--ignore-eos"] if turn.ignore_eos else []),
            *("--save-result", "--save-detailed", "--result-dir", str(result.parent), "--result-filename", result.name),
            "--disable-tqdm",
        ]

    def counts(self) -> dict[str, float]:
        """Raises ChildError where the server does not answer."""
        try:
            with without_proxy().open(f"{self.url}/metrics", timeout=60.0) as answer:
                return read_counts(answer.read().decode())
        except (URLError, OSError) as error:
            raise ChildError(
                f"the server of {self.name} gives no metrics ({error}).\n{tail(self.log, LOG_LINES)}"
            ) from None

    def _reset(self) -> None:
        """Empty the prefix cache, as every turn has the same prompts."""
        request = Request(f"{self.url}/reset_prefix_cache", data=b"", method="POST")
        with without_proxy().open(request, timeout=60.0):
            pass

    def _figures(self, found: Mapping[str, Any], turn: Turn, before: Counts, now: Counts) -> dict[str, Any]:
        if found["completed"] < turn.requests:
            reason = next(filter(None, found["errors"]), "no reason given")
            reason = reason.strip().splitlines()[-1]
            raise ChildError(f"{turn.requests - found['completed']} requests of {self.name} failed: {reason}")
        per_step, accepted = decoding(before, now)
        return {
            "seconds": found["duration"],
            "outputs": found["generated_texts"],
            "tokens": found["output_lens"],
            "ttft": found["ttfts"],
            "latency": [first + sum(rest) for first, rest in zip(found["ttfts"], found["itls"], strict=True)],
            "tokens_per_step": per_step,
            "acceptance": accepted,
            **drafts(before, now, per_step),
            "milliseconds": step_time(before, now, found["duration"]),
        }


def start_server(
    plan: Plan, configuration: Configuration, prompts: Prompts, log: Path, stack: ExitStack, waiting: Waiting
) -> Engine:
    """Raises ChildError where the server ends, or is not ready in time."""
    settings = plan.settings
    number = settings.configurations.index(configuration)
    port = free_port() if settings.port is None else settings.port + number
    options = [*plan.engine_options(configuration), "--served-model-name", MODEL_NAME]
    speculative = None if configuration.speculative is None else dict(configuration.speculative)
    line = command(str(plan.folder), speculative, port, options)
    # With it a server has /reset_prefix_cache.
    process = stack.enter_context(running(line, log, {"VLLM_SERVER_DEV_MODE": "1", **configuration.env}))
    url, began = f"http://{HOST}:{port}", time.monotonic()
    while not is_healthy(url):
        seconds = time.monotonic() - began
        if process.poll() is not None:
            raise ChildError(
                f"the server of {configuration.name} ended with status {process.returncode}.\n{tail(log, LOG_LINES)}"
            )
        if seconds > START_SECONDS:
            raise ChildError(
                f"the server of {configuration.name} took more than {START_SECONDS:.0f} s.\n{tail(log, LOG_LINES)}"
            )
        waiting(seconds)
        time.sleep(TICK)
    stored = log.parent / "prompts.jsonl"
    prompts.write(stored)
    return ServedEngine(
        name=configuration.name,
        url=url,
        model=MODEL_NAME,
        tokenizer=plan.folder,
        prompts=stored,
        adds_special_tokens=prompts.adds_special_tokens,
        process=process,
        log=log,
    )
