# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from tests.oracles import random_drafter


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A valid checkpoint."""
    random_drafter().save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"
