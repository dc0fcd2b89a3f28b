# SPDX-License-Identifier: Apache-2.0
"""A Prometheus with the configuration of `deploy/` that scrapes a server on this machine."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from redrafter_vllm.utils.local_server import HOST, free_port, without_proxy
from tools.pictures.errors import PictureError

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "deploy" / "prometheus.yaml"
READY_WITHIN = 30.0  # seconds


@dataclass(frozen=True)
class Series:
    """The values of a query for one set of labels, at the times for which there are some."""

    labels: Mapping[str, str]
    values: Mapping[float, float]  # by Unix time


class Prometheus:
    """A running one at `address`, HOST:PORT."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}"
        self._open = without_proxy().open

    def now(self, query: str) -> list[dict[str, Any]]:
        """The result of a query as Prometheus gives it: for each series its labels, `metric`, and its `value`."""
        return self._asked("query", query=query)

    def between(self, query: str, begin: float, end: float, step: float) -> list[Series]:
        """The result of a query every `step` seconds."""
        found = self._asked("query_range", query=query, start=begin, end=end, step=step)
        return [Series(one["metric"], {float(at): float(value) for at, value in one["values"]}) for one in found]

    def is_ready(self) -> bool:
        """Whether it answers queries by now."""
        try:
            with self._open(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _asked(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        with self._open(f"{self._url}/api/v1/{kind}?{urlencode(fields)}", timeout=60) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return found


def find_prometheus() -> str:
    """The path of its program. Raises `PictureError` if there is none."""
    program = shutil.which("prometheus")
    if program is None:
        raise PictureError("prometheus is not installed (Debian's package prometheus has it).")
    return program


@contextmanager
def scraping(server: str, folder: Path, seconds: int) -> Iterator[Prometheus]:
    """Yields a Prometheus that reads the metrics of a server every so many seconds, and ends it.

    Args:
        server: Its address, http://HOST:PORT.
        folder: For configuration, data and log.
        seconds: Between two readings.

    Raises:
        PictureError: It is not installed, or does not start.
    """
    program = find_prometheus()
    config = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = f"{seconds}s"
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"{HOST}:{free_port()}"
    options = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        command = [program, *options, f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            prometheus = Prometheus(address)
            started = time.monotonic()
            while not prometheus.is_ready():
                if process.poll() is not None or time.monotonic() - started > READY_WITHIN:
                    raise PictureError(f"prometheus is not ready:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield prometheus
        finally:
            process.terminate()
            process.wait(30)
