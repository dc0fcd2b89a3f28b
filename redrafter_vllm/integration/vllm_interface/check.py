# SPDX-License-Identifier: Apache-2.0
"""Which names of vLLM that this package uses a version still has, from its sources: nothing of vLLM is run.

A name that is there, with the same parameters, may still have another meaning: docs/design/vllm_interface.md lists what
to read.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from redrafter_vllm.integration.versions import RANGE, is_supported
from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from redrafter_vllm.integration.vllm_interface.source import INSTALLED, Fact, Source, Tree, open_tree
from redrafter_vllm.utils.messages import one_line

NEWEST = "newest"


class State(StrEnum):
    """What has become of a name."""

    HOLDS = "holds"  # as listed
    CHANGED = "CHANGED"  # other parameters, fewer attributes, or another kind of thing
    GONE = "GONE"


@dataclass(frozen=True)
class Verdict:
    """Whether a name is as listed."""

    name: VllmName
    state: State
    problem: str | None = None  # what has changed


@dataclass(frozen=True)
class Report:
    """All names of one version."""

    version: str  # empty where the sources name none
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.state is not State.HOLDS]

    @property
    def is_tested(self) -> bool | None:
        """Whether the version is in the range that this package serves with; None where the sources name none."""
        return is_supported(self.version) if self.version else None

    @property
    def is_good(self) -> bool:
        """Whether all names hold and the version is not outside the range."""
        return not self.broken and self.is_tested is not False

    def text(self) -> str:
        """A line for each name, how many hold, and what the range of versions says."""
        lines = []
        for verdict in self.verdicts:
            why = "" if verdict.problem is None else f": {verdict.problem}"
            lines.append(f"{verdict.state:8}{verdict.name.use:11}{verdict.name.target}{why}")
        holding = len(self.verdicts) - len(self.broken)
        lines.append(f"vLLM {self.version or 'of unknown version'}: {holding} of {len(self.verdicts)} names hold")
        if self.is_tested is None:
            lines.append(f"ReDrafter serves with {RANGE}; these sources do not say which version they are")
        elif not self.is_tested:
            lines.append(f"UNTESTED: ReDrafter serves with {RANGE}, and with this version refuses to start")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same for other programs."""
        names = [
            {"state": each.state.lower(), "use": each.name.use, "name": each.name.target, "problem": each.problem}
            for each in self.verdicts
        ]
        return {"vllm": self.version or None, "is_tested": self.is_tested, "names": names}


def examined(place: str) -> Report:
    """The report on `installed`, `newest`, a version such as 0.33.0, a wheel or a directory with vLLM's sources.

    A version's wheel is downloaded by pip, without what it depends on, and removed again.

    Raises:
        FileNotFoundError: There is no vLLM there.
        ValueError: The version cannot be downloaded.
    """
    with _tree(place) as tree:
        source = Source(tree)
        return Report(source.version(), tuple(verdict(name, source.fact(name.target)) for name in VLLM_NAMES))


@contextmanager
def _tree(place: str) -> Iterator[Tree]:
    if place == INSTALLED or Path(place).exists() or not (place == NEWEST or _is_version(place)):
        yield open_tree(place)
        return
    with tempfile.TemporaryDirectory(prefix="redrafter-vllm-") as folder:
        yield open_tree(str(downloaded(place, Path(folder))))


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def downloaded(version: str, folder: Path, *, progress: bool = False) -> Path:
    """vLLM's wheel of this version, or the newest one, in `folder`; `progress` shows pip's bar.

    Raises:
        ValueError: pip finds none, or cannot reach the package index.
    """
    wanted = "vllm" if version == NEWEST else f"vllm=={version}"
    options = "download --no-deps --only-binary :all: --disable-pip-version-check"
    quiet = [] if progress else ["--progress-bar", "off", "-q"]
    command = [sys.executable, "-m", "pip", *options.split(), *quiet, "--dest", str(folder), wanted]
    done = subprocess.run(command, stdout=None if progress else subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        if "(from versions: none)" in done.stderr:
            why = "the package index cannot be reached, or has no wheel of vLLM for this machine"
        raise ValueError(one_line(f"{wanted} cannot be downloaded: {why}"))
    return next(folder.glob("*.whl"))


def verdict(name: VllmName, fact: Fact) -> Verdict:
    """What has become of a name of which this is the fact."""
    if fact.kind == "missing":
        return Verdict(name, State.GONE)
    why = problem(name, fact)
    return Verdict(name, State.HOLDS if why is None else State.CHANGED, why)


def problem(name: VllmName, fact: Fact) -> str | None:
    """What has changed about a name; None where it is as listed."""
    if fact.kind == "missing":
        return "is gone"
    if name.use is Use.USED:
        gone = [attribute for attribute in name.attributes.split() if attribute not in fact.attributes]
        return f"has no {', '.join(gone)}" if gone else None
    if fact.kind != "function":
        return f"is a {fact.kind} now"
    if name.use is Use.CALLED:
        return _problem_of_call(name.parameters, fact.parameters)
    # Behind `*` the order says nothing, but a replacement by name takes what is listed all the same.
    found = [parameter.rstrip("=") for parameter in fact.parameters if parameter != "*"]
    if found == name.parameters.split():
        return None
    return f"takes ({' '.join(found)}), not ({name.parameters})"


def _problem_of_call(passed: str, parameters: Sequence[str]) -> str | None:
    by_position, _, by_name = (part.split() for part in passed.partition("*"))
    taken = [name for name in parameters if name not in ("self", "cls")]
    names = [name.rstrip("=") for name in taken]
    if names[: len(by_position)] != by_position:
        return f"takes ({' '.join(names)}), and is called with ({' '.join(by_position)})"
    if unknown := [name for name in by_name if name not in names]:
        return f"takes no {', '.join(unknown)}"
    rest = taken[len(by_position) :]
    if missing := [name for name in rest if not name.endswith("=") and name not in ("*", *by_name) and name[0] != "*"]:
        return f"also needs {', '.join(missing)}"
    return None


def facts_of(source: Source) -> dict[str, Fact]:
    """The fact of every name, by its target."""
    return {name.target: source.fact(name.target) for name in VLLM_NAMES}
