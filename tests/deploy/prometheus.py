# SPDX-License-Identifier: Apache-2.0
"""A Prometheus with the configuration of `deploy/`, which scrapes a server of the tests every second."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from redrafter_vllm.utils.local_server import HOST, free_port
from tests.deploy.tools import DEPLOY

Query = Callable[[str], list[dict[str, Any]]]


@contextmanager
def scraping(server: str, folder: Path) -> Iterator[Query]:
    """Yields a function that evaluates a query: its series, each with `metric` (labels) and `value`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus has it)")
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"{HOST}:{free_port()}"
    options = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]

    def query(expression: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{urlencode({'query': expression})}") as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return found

    with (folder / "log").open("wb") as log:
        command = [program, *options, f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until_ready(f"http://{address}/-/ready", process, folder / "log")
            yield query
        finally:
            process.terminate()
            process.wait(30)


def until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"prometheus is not ready:\n{log.read_text()[-2000:]}")
