# SPDX-License-Identifier: Apache-2.0
"""Requests of a varying number of clients, so that a dashboard has something to show."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from redrafter_vllm.chat.answers import ChatError, Server
from redrafter_vllm.prompt_sets import load_prompts
from tools.pictures.errors import PictureError

MAX_TOKENS = 128


def run(server: Server, phases: Sequence[tuple[int, int]], **sampling: Any) -> None:
    """Ask for so many seconds with so many clients at a time, phase after phase, prompts of MT-Bench.

    Args:
        phases: Of each the clients and the seconds.
        sampling: Fields of the requests.

    Raises:
        PictureError: The server has refused or ended an answer.
    """
    prompts = itertools.cycle([prompt.turns[0] for prompt in load_prompts("mt-bench")])
    with tqdm(total=sum(seconds for _, seconds in phases), unit="s") as progress:
        for clients, seconds in phases:
            progress.set_description(f"{clients} requests at a time")
            _phase(server, clients, seconds, prompts, sampling, progress)


def _phase(
    server: Server, clients: int, seconds: int, prompts: Iterator[str], sampling: dict[str, Any], progress: Any
) -> None:
    over = threading.Event()
    lock = threading.Lock()  # a generator may be asked by one thread at a time
    failures: list[ChatError] = []

    def ask() -> None:
        while not over.is_set():
            with lock:
                prompt = next(prompts)
            try:
                for _ in server.answer([{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS, **sampling):
                    if over.is_set():
                        break
            except ChatError as problem:
                failures.append(problem)
                over.set()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for _ in range(seconds):
        if over.wait(1.0):
            break
        progress.update()
    over.set()
    for thread in threads:
        thread.join()
    if failures:
        raise PictureError(f"the load has ended: {failures[0]}")
