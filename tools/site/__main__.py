# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.site`: build the site into build/site, warnings are errors, and check its links."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tools.site.links import broken_links

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


class SiteError(Exception):
    """The site cannot be built; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__.partition(": ")[2])
    parser.add_argument("--out", type=Path, default=SITE, help="folder of the site (default: build/site)")
    options = parser.parse_args(argv)
    try:
        build(options.out)
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


if __name__ == "__main__":
    sys.exit(main())
