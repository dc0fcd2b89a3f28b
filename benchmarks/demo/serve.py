# SPDX-License-Identifier: Apache-2.0
"""Answers from a real `vllm serve`, streamed through the OpenAI client."""

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console

from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from benchmarks.demo.progress import working
from benchmarks.demo.prompts import Prompt, second_turns
from benchmarks.engines.offline import BATCH, ENGINE
from redrafter_vllm.bench.child import ChildError, running, tail, waiting
from redrafter_vllm.utils.local_server import HOST, free_port, is_healthy

MODEL_NAME = "target"
READY_WITHIN = 300.0


@dataclass
class Answer:
    """What the server streamed for one prompt."""

    prompt: Prompt
    prompt_ids: list[int] = field(default_factory=list)  # the prompt as the server tokenised it
    token_ids: list[int] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class Served:
    """The server's answers, greedy and seeded, to the same prompts, and how long start and answers took."""

    command: list[str]
    start_seconds: float
    greedy: list[Answer]
    seeded: list[Answer]
    seconds: float


def serve_command(target: Path, speculative: dict[str, Any], port: int) -> list[str]:
    """The command line; the engine has the options of the offline ones."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    engine = []
    for name, value in ENGINE.items():
        flag = f"--{name.replace('_', '-')}"
        engine += [flag] if value is True else [flag, str(value)]
    place = ["--host", HOST, "--port", str(port), "--served-model-name", MODEL_NAME]
    return [vllm, "serve", str(target), "--speculative-config", json.dumps(speculative), *place, *engine]


@contextmanager
def serving(command: list[str], port: int, log: Path, console: Console) -> Iterator[float]:
    """Start the server, yield the seconds until it was healthy, and stop it when the block is left.

    Raises:
        ChildError: It ended or was not healthy in time; the message holds the end of its log.
    """
    started = time.monotonic()
    with running(command, log, {}) as server:
        for _ in waiting("waiting for the server", console, READY_WITHIN, log):
            if server.poll() is not None:
                raise ChildError(f"the server ended with status {server.returncode}.\n{tail(log)}")
            if is_healthy(f"http://{HOST}:{port}"):
                break
        yield time.monotonic() - started


async def ask(
    client: AsyncOpenAI, prompt: Prompt, max_tokens: int, received: Callable[[int], None], **sampling: float
) -> Answer:
    """Stream the answer to one prompt; `received` is called with the number of tokens of each piece.

    A conversation goes to the chat completions, a text to the completions.
    """
    common: dict[str, Any] = {
        "model": MODEL_NAME,
        "max_tokens": max_tokens,
        "stream": True,
        "extra_body": {"return_token_ids": True},
        **sampling,
    }
    if isinstance(prompt, str):
        stream: Any = await client.completions.create(prompt=prompt, **common)
    else:
        stream = await client.chat.completions.create(messages=prompt, **common)  # type: ignore[call-overload]
    answer = Answer(prompt)
    async for piece in stream:
        received(_add(answer, piece))
    return answer


def _add(answer: Answer, piece: Any) -> int:
    """Add a piece of a stream to its answer; the number of tokens in it.

    Token ids are vLLM's own fields: those of the prompt come with the first piece, in a chat beside the choices.
    """
    if not piece.choices:
        return 0
    choice = piece.choices[0]
    answer.prompt_ids += getattr(piece, "prompt_token_ids", None) or getattr(choice, "prompt_token_ids", None) or []
    answer.text += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
    tokens: list[int] = getattr(choice, "token_ids", None) or []
    answer.token_ids += tokens
    return len(tokens)


async def ask_all(
    client: AsyncOpenAI, prompts: Sequence[Prompt], options: DemoOptions, seeded: bool, report: Callable[[str], None]
) -> list[Answer]:
    """Answers to all prompts, at most `BATCH` requests at a time. Seeded, request i samples with seed i."""
    free_slots = asyncio.Semaphore(BATCH)
    done = tokens = 0

    def received(number: int) -> None:
        nonlocal tokens
        tokens += number
        report(f"{done} of {len(prompts)} answers, {tokens} tokens")

    async def answered(index: int) -> Answer:
        nonlocal done
        sampling = {"temperature": options.temperature, "seed": index} if seeded else {"temperature": 0.0}
        async with free_slots:
            answer = await ask(client, prompts[index], options.max_tokens, received, **sampling)
        done += 1
        return answer

    return await asyncio.gather(*map(answered, range(len(prompts))))


async def converse(
    port: int, prompts: Sequence[Prompt], options: DemoOptions, report: Callable[[str], None]
) -> tuple[list[Answer], list[Answer]]:
    """Greedy answers to the prompts and to second turns, then seeded answers to all of these."""
    # A proxy from the user's environment could not reach the loopback address.
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        AsyncOpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="none", http_client=http, timeout=300.0) as client,
    ):
        greedy = await ask_all(client, prompts, options, False, report)
        further = second_turns(prompts, [answer.text for answer in greedy])
        greedy += await ask_all(client, further, options, False, report)
        seeded = await ask_all(client, [*prompts, *further], options, True, report)
    return greedy, seeded


def serve_and_ask(pair: Pair, prompts: Sequence[Prompt], options: DemoOptions, console: Console) -> Served:
    """Start a server, ask it all prompts, stop it."""
    port, log = free_port(), options.out / "server.log"
    command = serve_command(pair.target, options.speculative(pair.drafter, adaptive=False), port)
    console.print(shlex.join(command), style="cyan", markup=False, highlight=False, soft_wrap=True)
    with serving(command, port, log, console) as start_seconds:
        console.print(f"the server was ready after {start_seconds:.0f} s; its log is {log}", soft_wrap=True)
        started = time.monotonic()
        with working("streaming answers through the OpenAI client, greedy and seeded", console) as report:
            greedy, seeded = asyncio.run(converse(port, prompts, options, report))
        seconds = time.monotonic() - started
        tokens = sum(len(answer.token_ids) for answer in (*greedy, *seeded))
        console.print(f"{len(greedy)} prompts answered twice, {tokens} tokens, in {seconds:.0f} s; stopping the server")
    return Served(command, start_seconds, greedy, seeded, seconds)
