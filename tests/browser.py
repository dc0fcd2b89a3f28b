# SPDX-License-Identifier: Apache-2.0
"""A headless browser that renders a page: what it shows, where, and in which colours.

Tests with it are skipped where neither chromium nor Chrome is installed (Debian: `apt-get install chromium`).
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tools.pictures.browser import BROWSERS

FOUND = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(FOUND is None, reason="no browser: apt-get install chromium")

WIDTH, HEIGHT = 1200, 1600  # pixels of the window
TIMEOUT = 120  # seconds


def measured(page: Path, expression: str) -> Any:
    """The value of a JavaScript expression in the page after it has been laid out, through JSON.

    The browser opens a copy of the page with a script in it: `document.body.innerText` is then what a reader sees,
    `getBoundingClientRect()` where something is.
    """
    script = (
        "<script>addEventListener('load', () => {"
        f"const found = JSON.stringify({expression});"
        "document.body.replaceChildren(); document.body.textContent = '@@' + found + '@@'; })</script>"
    )
    copy = page.with_name(f"{page.stem}-measured.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8")
    shown = _run(copy, "--dump-dom")
    found = re.search(r"<body[^>]*>@@(.*)@@</body>", shown, re.DOTALL)
    assert found, shown[-2000:]
    return json.loads(unescape(found[1]))


def visible_text(page: Path) -> str:
    """The text that a reader sees: without what styles hide, with the texts of drawings."""
    return str(measured(page, "document.body.innerText"))


def screenshot(page: Path) -> Any:
    """A picture of the window, [HEIGHT, WIDTH, 3] as an array of bytes."""
    import numpy as np

    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    file = page.with_suffix(".png")
    _run(page, f"--screenshot={file}")
    return np.asarray(image.open(file).convert("RGB"))


def _run(page: Path, action: str) -> str:
    assert FOUND is not None
    profile = page.parent / "browser-profile"
    # Inside containers, which have no user namespaces and a small /dev/shm.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000"]
    # Nothing outside the page may be fetched: it is self-contained.
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", action, page.absolute().as_uri()]
    ended = subprocess.run([FOUND, *options], capture_output=True, text=True, timeout=TIMEOUT)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout
