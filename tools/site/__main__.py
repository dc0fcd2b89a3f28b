# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.site`: build the site into build/site, warnings are errors, and check its links."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from tools.site.links import broken_links

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOW = (1280, 900)  # of a picture, in pixels


class SiteError(Exception):
    """The site cannot be built or shown; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__.partition(": ")[2])
    parser.add_argument("--out", type=Path, default=SITE, help="folder of the site (default: build/site)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="then picture the front page, as PNG")
    options = parser.parse_args(argv)
    try:
        browser = find_browser() if options.picture else None
        build(options.out)
        if browser is not None:
            take_picture(browser, options.out, options.picture)
    except SiteError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def build(out: Path) -> None:
    """Build the site into `out`. Raises `SiteError` for a warning or a broken link."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SiteError(f"The site needs {', '.join(missing)}: pip install -e '.[docs]' (make setup does).")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    # Material's notice of its successor is no warning of the build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(out.resolve())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SiteError(f"{done.stdout}{done.stderr}The site has not been built: see the warnings above.")
    broken = list(broken_links(out.resolve()))
    if broken:
        raise SiteError("\n".join([*broken, f"{len(broken)} links of the site lead nowhere."]))
    print(f"{out}/index.html: no warning, no broken link")


def find_browser() -> str:
    """The path of a browser that can run without a screen. Raises `SiteError` if there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise SiteError(
        f"A picture needs a browser, and none of {', '.join(BROWSERS)} is installed (apt install chromium)."
    )


def take_picture(browser: str, site: Path, picture: Path) -> None:
    """Write a picture of the front page of a site. Raises `SiteError` if the browser does not."""
    picture = picture.resolve()
    picture.parent.mkdir(parents=True, exist_ok=True)
    before = picture.stat().st_mtime_ns if picture.exists() else None
    size = "--window-size=" + ",".join(map(str, WINDOW))
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000", size]
    with served(site) as address:  # read from a disk, the page has no search
        command = [browser, *options, f"--screenshot={picture}", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if not picture.exists() or picture.stat().st_mtime_ns == before:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SiteError(f"{browser} has written no picture: {last}")
    print(picture)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a server of the folder `site` on this machine."""
    handler = partial(QuietHandler, directory=str(site.resolve()))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/index.html"
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    sys.exit(main())
