# SPDX-License-Identifier: Apache-2.0
"""Pictures of pages, by a browser without a screen."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.pictures.errors import PictureError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
COLOURS = 255  # of a PNG's palette: pages of text and plots need no more, and the file is a third as large
WITHIN = 300.0  # seconds


def find_browser() -> str:
    """The path of a browser that can run without a screen. Raises `PictureError` if there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise PictureError(
        f"A picture needs a browser, and none of {', '.join(BROWSERS)} is installed (apt install chromium)."
    )


def take_picture(browser: str, address: str, picture: Path, width: int, height: int) -> None:
    """Write the upper left `width` by `height` pixels of the page at an address as PNG.

    Raises:
        PictureError: The browser has written nothing.
    """
    picture.parent.mkdir(parents=True, exist_ok=True)
    # Inside containers there are no user namespaces, and /dev/shm is small.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += [f"--window-size={width},{height}", "--virtual-time-budget=5000"]
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        options += [f"--user-data-dir={folder}/profile", f"--screenshot={taken}"]
        done = subprocess.run([browser, *options, address], capture_output=True, text=True, check=False, timeout=WITHIN)
        if not taken.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PictureError(f"{browser} has written no picture: {last}")
        save_small(taken, picture)


def save_small(taken: Path, picture: Path) -> None:
    """Write an image as PNG with a palette."""
    from PIL import Image

    with Image.open(taken) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
