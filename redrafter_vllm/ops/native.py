# SPDX-License-Identifier: Apache-2.0
"""C++ kernels for CPUs: built by the system's compiler for this processor at the first use, and kept.

torch.compile needs the same compiler on a CPU. Without one the ops' plain-torch references run.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from redrafter_vllm.checkpoint.locate import home
from redrafter_vllm.utils.atomic import atomic_file

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows only loggers below its own name

_FLAGS = ["-O3", "-std=c++17", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
_HEADER = Path(__file__).with_suffix(".h")
_COMPILERS = ("g++", "clang++", "c++")
_TIME_LIMIT = 120  # seconds


@cache
def library(source: Path, *, uses_torch: bool = False) -> ctypes.CDLL | None:
    """The library of a C++ source, or None, with a line in the log, where it cannot be built.

    One that `uses_torch` is built with its headers, those of its stable interface, and registers operators when it is
    loaded.
    """
    try:
        return ctypes.CDLL(str(_built(source, uses_torch)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "ReDrafter: slower operations take the place of %s/%s, which cannot be built: %s",
            source.parent.name,
            source.name,
            error,
        )
        return None


@cache
def function(source: Path, name: str, arguments: str) -> Callable[..., None]:
    """A function of a library that can be built; `arguments` are `a`, an address or None, or `i`, an integer."""
    found = library(source)
    assert found is not None
    kernel = found[name]
    kernel.argtypes = [ctypes.c_void_p if kind == "a" else ctypes.c_int64 for kind in arguments]
    kernel.restype = None
    return kernel


def _built(source: Path, uses_torch: bool) -> Path:
    """Path of the library, named by what it depends on; it is built if it is not there.

    Raises:
        OSError: There is no compiler, or the library cannot be written.
        subprocess.SubprocessError: The compiler fails, or takes too long.
    """
    command = [*compiler(), *_FLAGS, *_flags_of_processor()]
    # Sources of a folder may include each other.
    texts = [file.read_text(encoding="utf-8") for file in (*sorted(source.parent.glob("*.cpp")), _HEADER)]
    parts = [source.name, *texts, *command, _version(command[0]), _processor(), torch.__version__ * uses_torch]
    places = [f"-I{_HEADER.parent}", *(_flags_of_torch() if uses_torch else [])]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    name = f"{source.parent.name}-{digest[:16]}.so"
    path = home() / "native" / name
    if not path.exists():
        with atomic_file(path) as temporary:
            _run([*command, str(source), *places, "-o", str(temporary)])
    return path


def compiler() -> list[str]:
    """The command that `CXX` names, or the first compiler there is.

    Raises:
        FileNotFoundError: There is none.
    """
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise FileNotFoundError(f"there is no {chosen[0]}, which CXX names; correct or unset it")
        return chosen
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise FileNotFoundError(f"there is no C++ compiler ({', '.join(_COMPILERS)}); install one, or name it by CXX")


def _flags_of_processor() -> list[str]:
    # Compilers prefer vectors of 256 bits where those of 512 once lowered the clock.
    return ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []


def _flags_of_torch() -> list[str]:
    folder = Path(torch.__file__).parent
    return ["-isystem", str(folder / "include"), f"-L{folder / 'lib'}", "-ltorch_cpu"]


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _processor() -> str:
    """What `-march=native` depends on, as a home folder may be shared by machines of different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.split(":")[0].strip() in named))


def _run(command: list[str]) -> str:
    """Standard output of a command.

    Raises:
        OSError: It cannot be run.
        subprocess.SubprocessError: It fails, with the beginning of what it said, or takes too long.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise subprocess.SubprocessError(f"{command[0]} fails: {said[:200]}")
    return done.stdout
