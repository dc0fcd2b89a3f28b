# SPDX-License-Identifier: Apache-2.0
"""What `redrafter doctor` finds of the machine, and what follows for drafting and attention; vLLM is not imported."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from redrafter_vllm.cli.findings import installed
from redrafter_vllm.utils.findings import Finding, Level
from redrafter_vllm.utils.paths import PlaceError, free_space

GIB = 1 << 30
MIN_MEMORY = 4 * GIB  # free, for a small target and its cache
MIN_DISK = 2 * GIB  # free, for a small target and a drafter
# Names in /proc/cpuinfo, and what they bring.
CPU_FEATURES = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "VNNI", "amx_bf16": "AMX"}
FLASH_FILES = "vllm_flash_attn/_vllm_fa*_C*.so"  # in vLLM's folder
CPU_SWITCH = "REDRAFTER_CPU_ATTENTION"  # the same as in `integration.attention.select`, which imports vLLM
WITHIN = 10.0  # seconds, for the driver's program
LOWEST_CAPABILITY = 8  # of FlashAttention, and of the kernels' tests


def device() -> Iterator[Finding]:
    """torch, the GPUs, and what follows for drafting and attention."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding(Level.OK, "torch", f"{torch.__version__}, {build}")
    yield _triton()
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        yield from (_gpu(each, index) for index, each in enumerate(properties))
        driver = _driver()
        level = Level.NOTE if driver is None else Level.OK
        yield Finding(level, "driver", driver or "nvidia-smi does not say its version")
        yield _gpu_attention(min(each.major for each in properties))
        return
    if shutil.which("nvidia-smi") is not None:
        yield Finding(
            Level.PROBLEM,
            "GPU",
            f"nvidia-smi is there, but torch ({build}) sees no GPU; its driver is {_driver() or 'unknown'}",
            "install a CUDA build of torch that fits the driver, or unset CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding(Level.NOTE, "GPU", "none: engines run on the CPU, which is meant for trials")
    yield _processor()
    yield _cpu_attention()


def _triton() -> Finding:
    """What trees are verified with, as vLLM's older runner has no place for them."""
    version = installed("triton")
    if version is not None or find_spec("triton") is not None:  # builds of torch bring it under other names
        return Finding(Level.OK, "Triton", version or "installed under another name")
    return Finding(
        Level.PROBLEM,
        "Triton",
        "not installed: vLLM's runner V2, which verifies trees, needs it",
        "on an NVIDIA GPU: pip install triton; without one, in a clone: make setup",
    )


def _driver() -> str | None:
    """The version of the GPU's driver; None where its program does not say it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WITHIN)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _gpu_attention(major: int) -> Finding:
    """What serves trees on GPUs, the oldest of which has compute capability `major`."""
    spec = find_spec("vllm")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    files = [] if folder is None else sorted(file.name.partition(".")[0] for file in folder.glob(FLASH_FILES))
    if not files:
        return Finding(Level.NOTE, "attention", "trees on Triton: vLLM has no extension with FlashAttention here")
    if major < LOWEST_CAPABILITY:
        says = f"trees on Triton: FlashAttention needs compute capability {LOWEST_CAPABILITY}.0"
        return Finding(Level.NOTE, "attention", says)
    says = f"trees of targets in 16 bits on FlashAttention ({', '.join(files)}), others on Triton"
    return Finding(Level.OK, "attention", says)


def _cpu_attention() -> Finding:
    """What serves trees on a CPU."""
    from redrafter_vllm.ops.native import compiler

    chosen = os.environ.get(CPU_SWITCH, "native")
    if chosen != "native":
        says = f"{CPU_SWITCH}={chosen}: kernels of a GPU, interpreted, which is for debugging"
        return Finding(Level.NOTE, "attention", says, f"unset {CPU_SWITCH}")
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
    if major < LOWEST_CAPABILITY:
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


def disk() -> Iterator[Finding]:
    """Free space where drafters and built kernels are kept, and where models of the hub are."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from redrafter_vllm.checkpoint.locate import HOME_VARIABLE, home

    for what, folder, variable in (("disk", home(), HOME_VARIABLE), ("disk of models", Path(HF_HUB_CACHE), "HF_HOME")):
        try:
            free = free_space(folder)
        except PlaceError as error:
            yield Finding(Level.PROBLEM, what, str(error), f"correct {variable}")
            continue
        low = free < MIN_DISK
        remedy = f"remove what is not needed, or choose another place by {variable}" if low else ""
        yield Finding(Level.NOTE if low else Level.OK, what, f"{free / GIB:.1f} GiB free at {folder}", remedy)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
