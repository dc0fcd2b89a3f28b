# SPDX-License-Identifier: Apache-2.0
"""Two sizes of the same tests: a short one for every run, and `--hypothesis-profile=long`, 100,000 inputs a parser.

The long one comes in rounds, as hypothesis remembers the inputs of a round: what memory a parser keeps shows from round
to round.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.inputs import TALLIES, memory, run_in

ROUNDS = 50
INPUTS_A_ROUND = 2000
KEPT_MEMORY = 64 << 20  # bytes that the allocator may hold on to between the second round and the last

# Bounds on time are those of `inputs.only`; hypothesis's own health checks measure how busy the machine is.
_common = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=300, derandomize=True, **_common)
settings.register_profile("long", max_examples=INPUTS_A_ROUND, **_common)
settings.load_profile("short")  # a profile named on the command line is loaded after this


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_long = settings.get_current_profile_name() == "long" and getattr(metafunc.function, "is_hypothesis_test", False)
    metafunc.parametrize("fuzz_round", range(ROUNDS if is_long else 1), indirect=True)


@pytest.fixture(autouse=True)
def fuzz_round(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs one round in a new directory, the only one where anything may be written."""
    name = f"{request.path.name}::{request.function.__name__}"
    tally = TALLIES[name]
    with run_in(tmp_path_factory.mktemp("fuzz"), tally):
        yield
    if settings.get_current_profile_name() != "long":
        return
    tally.memory.append(memory())
    if len(tally.memory) > 2:
        assert tally.kept < KEPT_MEMORY, f"{name} keeps {tally.kept >> 20} MiB after {tally.inputs} inputs"


@pytest.fixture
def scratch() -> Path:
    """The round's directory."""
    return Path.cwd()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if settings.get_current_profile_name() == "long":
        terminalreporter.section("fuzz")
        for name, tally in TALLIES.items():
            terminalreporter.write_line(f"{name}: {tally}")
