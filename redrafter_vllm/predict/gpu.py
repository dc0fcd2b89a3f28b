# SPDX-License-Identifier: Apache-2.0
"""GPUs by name, from `gpus.json` and from files of the same form: data sheet figures, and what of them is reached."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.messages import did_you_mean, shown

OWN_FILE = Path(__file__).with_name("gpus.json")


class GpuError(ValueError):
    """A GPU that is unknown or described wrongly; the message says where and what is wrong."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Names, which have the units, are those of the JSON files. Raises GpuError for impossible figures.

    Attributes:
        bandwidth_tb_s: Of its memory, 10^12 bytes per second (data sheet).
        tflops: 10^12 operations per second of dense 16-bit matrix products, without sparsity (data sheet).
        memory_gb: 10^9 bytes (data sheet).
        link_gb_s: To the other GPUs of a tensor-parallel group, 10^9 bytes per second in one direction (data sheet).
        source: Where the figures above are from.
        bandwidth_share: Share of the bandwidth that reading weights reaches.
        arithmetic_share: Share of the arithmetic that the products of a decode step reach.
        launch_us: Microseconds by which one more kernel lengthens a CUDA graph, whatever it computes.
        all_reduce_us: Microseconds of an all-reduce beyond the transfer of its bytes.
        step_ms: Milliseconds of an engine's step in which the GPU does not compute: scheduling, inputs, outputs.
    """

    bandwidth_tb_s: float
    tflops: float
    memory_gb: float
    link_gb_s: float
    source: str
    # Fitted to published measurements on one H100, which docs/predicting.md names, and taken for the others, too.
    bandwidth_share: float = 0.84
    arithmetic_share: float = 0.72
    launch_us: float = 1.7
    all_reduce_us: float = 15.0
    step_ms: float = 1.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "source":
                if not isinstance(value, str):
                    raise GpuError(f"source must be a text, not {shown(value)}")
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.name in ("launch_us", "all_reduce_us", "step_ms"):
                if not (is_number and value >= 0):
                    raise GpuError(f"{field.name} must be a number of at least 0, not {shown(value)}")
            elif not (is_number and value > 0):
                raise GpuError(f"{field.name} must be a number above 0, not {shown(value)}")
            if field.name.endswith("_share") and value > 1:
                raise GpuError(f"{field.name}={shown(value)} is out of range; it must be at most 1")

    @property
    def bytes_per_second(self) -> float:
        """What reading weights and the cache reaches."""
        return 1e12 * self.bandwidth_tb_s * self.bandwidth_share

    @property
    def flops(self) -> float:
        """Operations per second that matrix products reach."""
        return 1e12 * self.tflops * self.arithmetic_share


def known_gpus(files: tuple[Path, ...] = ()) -> dict[str, Gpu]:
    """All GPUs by name; of those with one name the last file's counts.

    Raises:
        GpuError: A file cannot be read, or describes a GPU wrongly.
    """
    found: dict[str, Gpu] = {}
    for file in (OWN_FILE, *files):
        found |= _read(file)
    return found


def find_gpu(name: str, known: Mapping[str, Gpu]) -> Gpu:
    """Raises GpuError for an unknown name."""
    if name not in known:
        raise GpuError(
            f"{shown(name)} is no known GPU{did_you_mean(name, known)}; known are {', '.join(known)}, and --gpus FILE "
            "adds others"
        )
    return known[name]


def _read(file: Path) -> dict[str, Gpu]:
    try:
        described: Any = strict_json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GpuError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(described, dict) or not all(isinstance(figures, dict) for figures in described.values()):
        raise GpuError(f"{file} must hold one JSON object: names of GPUs, each with an object of its figures")
    return {name: _gpu(figures, f"{file}, {name}") for name, figures in described.items()}


def _gpu(figures: Mapping[str, Any], where: str) -> Gpu:
    names = [field.name for field in fields(Gpu)]
    for name in figures:
        if name not in names:
            raise GpuError(f"{where}: {shown(name)} is no figure of a GPU{did_you_mean(name, names)}")
    try:
        return Gpu(**figures)
    except TypeError:
        missing = [
            name for name in ("bandwidth_tb_s", "tflops", "memory_gb", "link_gb_s", "source") if name not in figures
        ]
        raise GpuError(f"{where} lacks {', '.join(missing)}") from None
    except GpuError as error:
        raise GpuError(f"{where}: {error}") from None
