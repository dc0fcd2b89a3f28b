# SPDX-License-Identifier: Apache-2.0
"""Grafana's description of the dashboard: its panels, and their queries as Prometheus takes them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.pictures.errors import PictureError

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "reference" / "grafana" / "redrafter.json"
COLUMNS = 24  # of Grafana's grid
UNITS = ("short", "percentunit")


@dataclass(frozen=True)
class Query:
    """One of a panel's, with Grafana's variables still in it."""

    expression: str
    legend: str

    def with_variables(self, rate_interval: str) -> str:
        """The query with all models and engines chosen, as they are when the dashboard is opened."""
        chosen = {"$__rate_interval": rate_interval, "$model_name": ".*", "$engine": ".*"}
        found = self.expression
        for name, value in chosen.items():
            found = found.replace(name, value)
        if "$" in found:
            raise PictureError(f"a query of {DASHBOARD.name} has a variable that is not known here: {self.expression}")
        return found

    def label(self, labels: Mapping[str, str]) -> str:
        """The name of a series."""
        return re.sub(r"{{\s*(\w+)\s*}}", lambda name: labels.get(name[1], ""), self.legend)


@dataclass(frozen=True)
class Panel:
    """A panel with curves over time. Places and sizes are those of Grafana's grid, which counts from the top left."""

    title: str
    unit: str
    low: float | None
    high: float | None
    left: int
    top: int
    width: int
    height: int
    queries: tuple[Query, ...]


def read_panels(path: Path = DASHBOARD) -> list[Panel]:
    """All panels. Raises `PictureError` for one that cannot be drawn here."""
    return [_panel(found) for found in json.loads(path.read_text(encoding="utf-8"))["panels"]]


def rate_interval(step: float, scrape: float) -> str:
    """Grafana's `$__rate_interval` for values every `step` seconds of what is read every `scrape` seconds."""
    return f"{max(step + scrape, 4 * scrape):g}s"


def _panel(found: Mapping[str, Any]) -> Panel:
    defaults, place = found["fieldConfig"]["defaults"], found["gridPos"]
    if found["type"] != "timeseries" or defaults["unit"] not in UNITS:
        raise PictureError(f"panel {found['title']!r} is no time series in one of the units {', '.join(UNITS)}")
    return Panel(
        found["title"],
        defaults["unit"],
        defaults.get("min"),
        defaults.get("max"),
        place["x"],
        place["y"],
        place["w"],
        place["h"],
        tuple(Query(target["expr"], target["legendFormat"]) for target in found["targets"]),
    )
