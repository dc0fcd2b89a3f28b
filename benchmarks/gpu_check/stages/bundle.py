# SPDX-License-Identifier: Apache-2.0
"""Findings and logs in one archive, for machines without lasting storage; weights are not included."""

import tarfile
from pathlib import Path

from redrafter_vllm.utils.atomic import atomic_file

# In the folder itself and in those of the stages. Deeper folders, such as an inflated target, can be made again.
KEPT = ("*.json", "*.outcome", "*.log", "*/*.log")


def pack(folder: Path, archive: Path, *others: Path) -> None:
    """Write `archive` atomically: findings and logs of `folder`, and the files `others` under `record/`."""
    with atomic_file(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for file in sorted({path for pattern in KEPT for path in folder.glob(pattern)}):
            tar.add(file, file.relative_to(folder).as_posix())
        for file in others:
            if file.parent != folder:
                tar.add(file, f"record/{file.name}")


def unpack(archive: Path, folder: Path) -> None:
    """Restore the files of `archive` below `folder`, where `pack` found them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
