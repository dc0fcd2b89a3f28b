# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

from benchmarks.record import record


def test_a_record_has_command_versions_and_hardware(tmp_path: Path) -> None:
    file = record("benchmarks.training.ray_workers", ["--target", "a b"], {"speedup": 1.5}, tmp_path / "new")
    kept = json.loads(file.read_text())
    assert file.parent == tmp_path / "new" and file.name.startswith("ray-workers_")
    assert kept["command"] == "python -m benchmarks.training.ray_workers --target 'a b'"
    assert kept["speedup"] == 1.5
    assert {"date", "hardware"} < kept.keys() and {"torch", "vllm", "python"} <= kept["versions"].keys()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
