# SPDX-License-Identifier: Apache-2.0
"""Pictures of pages that this project makes: the site, a tree page, reports, and the recorded comparison."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from redrafter_vllm.watch.pair import Pair
from tools.pictures.browser import find_browser, take_picture
from tools.pictures.errors import PictureError
from tools.site.__main__ import SITE, build

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "pictures"  # what the pictured pages were made of
MODELS = ROOT / "tests" / "assets"
SMALL = MODELS / "stdlib-llama"
PROMPT = "Why is the sky blue?"
SHOWN = "How do I make a cup of tea?"


def front_page(pair: Pair, picture: Path) -> None:
    """The first page of the documents as a site, which is built."""
    browser = find_browser()
    build(SITE)
    with served(SITE) as address:  # read from a disk, the page has no search
        take_picture(browser, address, picture, 1280, 900)


def trees(pair: Pair, picture: Path) -> None:
    """The page of `redrafter inspect --tree --html`."""
    browser, page = find_browser(), WORK / "trees.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    given = ["--target", str(pair.target), "--tree", PROMPT, "--max-tokens", "40", "--html", str(page)]
    redrafter("inspect", str(pair.drafter), *given, "--beam-width", "3", "--nodes", "8", "--overwrite")
    take_picture(browser, page.as_uri(), picture, 1000, 850)


def benchmark(pair: Pair, picture: Path) -> None:
    """The report of a short `redrafter bench offline`, measured anew."""
    browser, folder = find_browser(), WORK / "benchmark"
    shutil.rmtree(folder, ignore_errors=True)  # with the rounds of an earlier call nothing would be measured
    compared = {"6 nodes": {"adaptive": False, "beam_width": 3, "num_speculative_tokens": 6}, "adaptive": {}}
    given = ["--without-redrafter", "--out", str(folder), "--concurrency", "1", "4"]
    given += ["--requests", "4", "--max-tokens", "64", "--rounds", "3"]
    for name, options in compared.items():
        speculative = {"method": "redrafter", "model": str(pair.drafter), **options}
        given += ["--config", f"ReDrafter, {name}={json.dumps(speculative)}"]
    redrafter("bench", "offline", str(pair.target), *given, "--", "--dtype", "float32")
    take_picture(browser, (folder / "report.html").as_uri(), picture, 1000, 1010)


def training(pair: Pair, picture: Path) -> None:
    """The report of a training of three minutes for the small target."""
    browser, out = find_browser(), WORK / "drafter"
    given = ["--target", str(SMALL), "--data", "stdlib", "--recipe", "short", "--out", str(out)]
    run = out.with_name(f"{out.name}.run")
    for earlier in (out, run):
        shutil.rmtree(earlier, ignore_errors=True)
    redrafter("train", *given, "--evaluate-every", "50", "--max-seconds", "600")
    page = run / "report.html"
    take_picture(browser, page.as_uri(), picture, 1000, 1165)


def comparison(pair: Pair, picture: Path) -> None:
    """What `redrafter watch` replays, of an answer in which no near tie is rounded to the other side in bfloat16."""
    redrafter("watch", "--prompt", SHOWN, "--overwrite", "--export", str(picture))


def redrafter(*given: str) -> None:
    """Run the command, which prints its progress. Raises `PictureError` if it fails."""
    done = subprocess.run([sys.executable, "-m", "redrafter_vllm", *given], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise PictureError(f"redrafter {given[0]} has failed with status {done.returncode}: see above.")


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
