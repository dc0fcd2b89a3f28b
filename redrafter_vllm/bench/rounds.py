# SPDX-License-Identifier: Apache-2.0
"""The rounds of a benchmark: every engine takes its turns in each, and each is stored when it has ended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.compare import compare
from redrafter_vllm.bench.fleet import Fleet
from redrafter_vllm.bench.load import Load, Ramp, name_of
from redrafter_vllm.bench.settings import Settings
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.utils.messages import listed

RUN_FILE, FOLDER = "run.json", "rounds"
PHASE_TOKENS = 32  # of each request, for the times of a step's phases

Round = list[dict[str, Any]]  # turns, with the name of the configuration and the load of each, under `concurrency`


class ContinueError(ValueError):
    """The folder of results holds something else; the message says what."""


@dataclass(frozen=True)
class Results:
    """A folder with what was run and a file for each finished round."""

    folder: Path

    def begin(self, run: Mapping[str, Any]) -> int:
        """Write what is run, or find that it is the same as before; the number of rounds that are there.

        Raises:
            ContinueError: The folder holds another run, or something else.
        """
        file = self.folder / RUN_FILE
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ContinueError(f"{self.folder} exists and holds no benchmark: choose another --out")
            write_text(file, strict_json.dumps(run, indent=2) + "\n")
            return 0
        try:
            before = strict_json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ContinueError(f"{file} cannot be read ({error}): choose another --out") from None
        if differing := differences(before, json.loads(strict_json.dumps(run))):
            raise ContinueError(
                f"{self.folder} holds a benchmark of another {listed(differing)}: choose another --out, or give the "
                "same options to continue it"
            )
        return len(self.rounds())

    def run(self) -> dict[str, Any]:
        """What is run."""
        found: dict[str, Any] = strict_json.loads((self.folder / RUN_FILE).read_text("utf-8"))
        return found

    def add(self, number: int, found: Round) -> None:
        write_text(self._file(number), strict_json.dumps(found) + "\n")

    def rounds(self) -> list[Round]:
        """The finished ones, in their order."""
        found: list[Round] = []
        while (file := self._file(len(found))).is_file():
            found.append(strict_json.loads(file.read_text("utf-8")))
        return found

    def _file(self, number: int) -> Path:
        return self.folder / FOLDER / f"{number + 1:03}.json"


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Names of what two runs do not have in common; those inside of `settings` by their own names."""
    if not isinstance(before, dict):
        return ["kind"]
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and name == "settings":
            found += differences(old, new)
        else:
            found.append(name)
    return found


def run_rounds(settings: Settings, fleet: Fleet, results: Results, done: int, bar: tqdm) -> None:
    """The rounds after the first `done`.

    Raises:
        ChildError: An engine failed; the rounds before are stored.
    """
    fleet.start_all()
    for number in range(done, settings.rounds):
        found: Round = []
        for load, name in turns(settings, number, together=fleet.plan.together):
            fleet.prepare(name, load)
            bar.set_description(f"round {number + 1} of {settings.rounds}, {load} at a time, {name}")
            found.append(
                {"configuration": name, "concurrency": name_of(load), **_turn(settings, fleet, name, load, bar)}
            )
            if number == 0 and not isinstance(load, Ramp) and "milliseconds" not in found[-1]:
                phases = Turn(load, load, min(PHASE_TOKENS, settings.max_tokens), phases=True, **_common(settings))
                found[-1]["milliseconds"] = fleet.turn(name, phases, lambda finished: None)["milliseconds"]
            found[-1]["memory"] = fleet.memory.get(name)
        results.add(number, _compared(found, settings.configurations[0].name))


def turns(settings: Settings, number: int, *, together: bool) -> Iterator[tuple[Load, str]]:
    """Load and configuration of each turn of a round.

    An engine may run slower or faster after another one, so the order alternates. One that runs alone takes all of its
    turns at once.
    """
    names = [one.name for one in settings.configurations]
    if number % 2:
        names.reverse()
    if together:
        yield from ((load, name) for load in settings.concurrency for name in names)
    else:
        yield from ((load, name) for name in names for load in settings.concurrency)


def requests_left(settings: Settings, done: int) -> int:
    """Requests of the rounds after the first `done`."""
    each = sum(map(settings.requests_at, settings.concurrency))
    return max(0, settings.rounds - done) * each * len(settings.configurations)


def _common(settings: Settings) -> dict[str, Any]:
    return {"temperature": settings.temperature, "ignore_eos": settings.ignores_eos}


def _turn(settings: Settings, fleet: Fleet, name: str, load: Load, bar: tqdm) -> dict[str, Any]:
    requests, counted = settings.requests_at(load), 0

    def finished(number: int) -> None:
        nonlocal counted
        counted += number
        bar.update(number)

    turn = Turn(requests, load, settings.max_tokens, **_common(settings))
    found = fleet.turn(name, turn, finished)
    bar.update(requests - counted)
    return found


def _compared(found: Sequence[dict[str, Any]], plain: str) -> Round:
    """The turns with the number of requests whose outputs are those of plain vLLM under the same load."""
    expected = {turn["concurrency"]: turn["outputs"] for turn in found if turn["configuration"] == plain}
    return [
        {**turn, "same_requests": compare(expected[turn["concurrency"]], turn["outputs"]).same_requests}
        for turn in found
    ]
