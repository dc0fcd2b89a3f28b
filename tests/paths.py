# SPDX-License-Identifier: Apache-2.0
"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSET = ROOT / "tests" / "assets" / "stdlib-llama"  # the committed target, with its drafter
SHARED = ROOT.parent / "shared"  # inputs that are not part of the repository, and may be absent
