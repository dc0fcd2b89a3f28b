# SPDX-License-Identifier: Apache-2.0
"""The dashboard over a live server: its panels' queries, answered by Prometheus, while requests are served."""

import tempfile
import time
from functools import partial
from pathlib import Path

from redrafter_vllm.chat.answers import Server
from redrafter_vllm.chat.own_server import serving
from redrafter_vllm.cli.asking import waiting_for
from redrafter_vllm.watch.pair import Pair
from tools.pictures import load
from tools.pictures.dashboard import Panel, rate_interval, read_panels
from tools.pictures.errors import PictureError
from tools.pictures.panels import Curve, Span, draw, is_shown
from tools.pictures.prometheus import Prometheus, find_prometheus, scraping

SCRAPE = 5  # seconds, as in deploy/prometheus.yaml
STEP = 5.0  # seconds between two values of a curve
PHASES = ((1, 90), (4, 90), (8, 90), (1, 90))  # clients and seconds
TITLE = "ReDrafter on vLLM"
NOTE = "drawn by tools.pictures from the dashboard's JSON and Prometheus' answers; no screenshot of Grafana"


def dashboard(pair: Pair, picture: Path) -> None:
    """Serve a pair under load for six minutes and draw the dashboard of that time.

    Raises:
        PictureError: Prometheus is missing, or a panel shows nothing.
        ChatError: The server does not start.
    """
    find_prometheus()
    panels = read_panels()
    speculative = {"method": "redrafter", "model": str(pair.drafter)}
    options = ["--max-model-len", "1024", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(1 << 29)]
    starting = partial(waiting_for, "vllm serve")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(str(pair.target), speculative, options, starting) as url,
        scraping(url, Path(folder), SCRAPE) as prometheus,
    ):
        begin = time.time()
        load.run(Server(url), PHASES, temperature=0.0)
        span = Span(begin + 2 * SCRAPE, time.time(), STEP)
        shown = [(panel, curves_of(panel, prometheus, span)) for panel in panels]
    draw(shown, span, TITLE, NOTE, picture)
    empty = [panel.title for panel, curves in shown if not any(map(is_shown, curves))]
    if empty:
        raise PictureError(f"{picture} has panels without a value: {', '.join(empty)}")


def curves_of(panel: Panel, prometheus: Prometheus, span: Span) -> list[Curve]:
    """What a panel shows of that time."""
    window = rate_interval(span.step, SCRAPE)
    return [
        Curve(query.label(series.labels), series)
        for query in panel.queries
        for series in prometheus.between(query.with_variables(window), span.begin, span.end, span.step)
    ]
