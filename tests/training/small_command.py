# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training` on the committed target and a dozen conversations: takes a few seconds."""

import json
import shutil
from pathlib import Path

from tests.paths import ASSET

KEYS = [
    "--chat-template",
    "vicuna",
    "--window",
    "160",
    "--batch-size",
    "2",
    "--evaluate-windows",
    "2",
    "--response-fraction",
    "0",
    "--evaluate",
    "false",
    "--exit-dim",
    "64",
    "--beam-length",
    "2",
    "--device",
    "cpu",
]


def write_data(path: Path, answer: str = "The answer is {} and that is all.") -> Path:
    turns = [
        [{"from": "human", "value": f"question {i}?"}, {"from": "gpt", "value": answer.format(i)}] for i in range(12)
    ]
    path.write_text(json.dumps([{"conversations": said} for said in turns]))
    return path


def copy_target(path: Path) -> Path:
    return Path(shutil.copytree(ASSET, path, ignore=shutil.ignore_patterns("redrafter*")))


def small_command(target: Path | str, data: Path | str, out: Path, *more: str) -> list[str]:
    return ["--target", str(target), "--data", str(data), "--out", str(out), *KEYS, *more]


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
