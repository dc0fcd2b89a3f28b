# SPDX-License-Identifier: Apache-2.0
"""Completions from a real `vllm serve`, through the OpenAI client."""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from rich.console import Console

from benchmarks.engine_process import ChildError, running, tail, waiting
from benchmarks.engines.offline import BATCH, ENGINE, Workload

HOST = "127.0.0.1"
MODEL_NAME = "target"
READY_WITHIN = 300.0


@dataclass(frozen=True)
class Served:
    """The server's greedy completions, and how long start and completions took."""

    command: list[str]
    start_seconds: float
    tokens: list[list[int]]
    seconds: float


def serve_command(target: Path, port: int, options: Sequence[str] = ()) -> list[str]:
    """The command line; the engine has the options of the offline ones."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    engine = []
    for name, value in ENGINE.items():
        flag = f"--{name.replace('_', '-')}"
        engine += [flag] if value is True else [flag, str(value)]
    place = ["--host", HOST, "--port", str(port), "--served-model-name", MODEL_NAME]
    return [vllm, "serve", str(target), "--speculative-model", "redrafter", *place, *engine, *options]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int, drafter: Path, log: Path, console: Console) -> Iterator[float]:
    """Start the server, yield the seconds until it was healthy, and stop it when the block is left.

    Raises:
        ChildError: It ended or was not healthy in time; the message holds the end of its log.
    """
    started = time.monotonic()
    with running(command, log, {"REDRAFTER_CHECKPOINT": str(drafter)}) as server:
        for _ in waiting("waiting for the server", console, READY_WITHIN, log):
            if server.poll() is not None:
                raise ChildError(f"the server ended with status {server.returncode}.\n{tail(log)}")
            if _is_healthy(port):
                break
        yield time.monotonic() - started


def _is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


async def complete_all(port: int, workload: Workload) -> list[list[int]]:
    """Greedy continuations of all prompts, as tokens; at most `BATCH` requests at a time."""
    free_slots = asyncio.Semaphore(BATCH)
    # A proxy from the user's environment could not reach the loopback address.
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        AsyncOpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="none", http_client=http, timeout=300.0) as client,
    ):

        async def complete(text: str) -> list[int]:
            async with free_slots:
                completion: Any = await client.completions.create(
                    model=MODEL_NAME,
                    prompt=text,
                    temperature=0.0,
                    max_tokens=workload.max_tokens,
                    extra_body={"return_token_ids": True},
                )
                return list(completion.choices[0].token_ids)

        return await asyncio.gather(*(complete(text) for text in workload.texts))


def serve_and_complete(target: Path, drafter: Path, workload: Workload, folder: Path, console: Console) -> Served:
    """Start a server, complete all prompts through it, stop it."""
    port = free_port()
    command = serve_command(target, port)
    console.print(f"REDRAFTER_CHECKPOINT={drafter} {' '.join(command)}", style="cyan", highlight=False, soft_wrap=True)
    with serving(command, port, drafter, folder / "server.log", console) as start_seconds:
        console.print(f"the server was ready after {start_seconds:.0f} s; its log is {folder / 'server.log'}")
        started = time.monotonic()
        with console.status(f"{len(workload.texts)} completions through the OpenAI client, {BATCH} at a time"):
            tokens = asyncio.run(complete_all(port, workload))
        seconds = time.monotonic() - started
        console.print(f"{len(tokens)} completions through the OpenAI client in {seconds:.1f} s; stopping the server")
    return Served(command, start_seconds, tokens, seconds)
