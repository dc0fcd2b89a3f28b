# SPDX-License-Identifier: Apache-2.0
"""GPUs by name, and from files of a user's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.predict.gpu import Gpu, GpuError, find_gpu, known_gpus

FIGURES = {"bandwidth_tb_s": 1.5, "tflops": 200, "memory_gb": 40, "link_gb_s": 25, "source": "test"}


def write(folder: Path, content: Any) -> Path:
    file = folder / "gpus.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_every_known_gpu_has_a_source() -> None:
    gpus = known_gpus()
    assert {"h100", "h200", "a100"} <= set(gpus)
    assert all(gpu.source for gpu in gpus.values())


def test_a_file_adds_gpus_and_replaces_known_ones(tmp_path: Path) -> None:
    file = write(tmp_path, {"mine": FIGURES, "h100": FIGURES | {"launch_us": 3}})
    gpus = known_gpus((file,))
    assert find_gpu("mine", gpus) == Gpu(**FIGURES)
    assert gpus["h100"].launch_us == 3
    assert gpus["h200"] == known_gpus()["h200"]


def test_shares_of_what_the_data_sheet_says() -> None:
    gpu = Gpu(2, 300, 80, 100, "test", bandwidth_share=0.8, arithmetic_share=0.5)
    assert (gpu.bytes_per_second, gpu.flops) == (1.6e12, 150e12)


def test_an_unknown_name() -> None:
    with pytest.raises(GpuError, match=r"'h10O' is no known GPU \(did you mean 'h100'\?\).*--gpus FILE adds others"):
        find_gpu("h10O", known_gpus())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "must hold one JSON object"),
        ({"mine": 3}, "must hold one JSON object"),
        ({"mine": {"tflops": 200}}, "mine lacks bandwidth_tb_s, memory_gb, link_gb_s, source"),
        ({"mine": FIGURES | {"tflop": 1}}, r"mine: 'tflop' is no figure of a GPU \(did you mean 'tflops'\?\)"),
        ({"mine": FIGURES | {"tflops": 0}}, "mine: tflops must be a number above 0, not 0"),
        ({"mine": FIGURES | {"tflops": "200"}}, "mine: tflops must be a number above 0, not '200'"),
        ({"mine": FIGURES | {"bandwidth_share": 1.2}}, "mine: bandwidth_share=1.2 is out of range"),
        ({"mine": FIGURES | {"launch_us": -1}}, "mine: launch_us must be a number of at least 0, not -1"),
        ({"mine": FIGURES | {"source": 1}}, "mine: source must be a text, not 1"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, content: Any, message: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(GpuError, match=message) as refused:
        known_gpus((file,))
    assert str(file) in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GpuError, match=r"none\.json cannot be read"):
        known_gpus((tmp_path / "none.json",))
