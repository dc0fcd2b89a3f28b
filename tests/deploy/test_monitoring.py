# SPDX-License-Identifier: Apache-2.0
"""Prometheus accepts its configuration and every query of the dashboard, Grafana's types every key of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DASHBOARD, DEPLOY, tool
from tools.pictures.dashboard import read_panels


def queries() -> list[str]:
    """Those of the dashboard's panels, with Grafana's variables as they are by default."""
    return [query.with_variables("1m") for panel in read_panels() for query in panel.queries]


def rules(path: Path, expressions: list[str]) -> Path:
    listed = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(expressions)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": listed}]}))
    return path


def test_prometheus_takes_the_configuration() -> None:
    assert "SUCCESS" in tool("promtool", "check", "config", DEPLOY / "prometheus.yaml")


def test_prometheus_takes_the_dashboard_s_queries(tmp_path: Path) -> None:
    found = queries()
    assert found and not any("$" in query for query in found)
    assert f"{len(found)} rules found" in tool("promtool", "check", "rules", rules(tmp_path / "rules.yaml", found))
    tool("promtool", "check", "rules", rules(tmp_path / "wrong.yaml", [found[0].replace("sum by", "sum of")]), status=1)


def lost(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where `before` has what `after` lacks."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{place}/{index}")
    elif before != after:
        yield place


def test_grafana_s_types_know_the_dashboard() -> None:
    """What Grafana's own types read and write again, generated from its schemas; they drop unknown keys."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="grafana-foundation-sdk is missing")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    def again(dashboard: Any) -> Any:
        return json.loads(json.dumps(models.Dashboard.from_json(dashboard), cls=JSONEncoder))

    register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    # Grafana writes a variable's query a second time as its definition, which these types do not have.
    variables = dashboard["templating"]["list"]
    assert [one.pop("definition", one["query"]["query"]) for one in variables[1:]] == [
        one["query"]["query"] for one in variables[1:]
    ]
    assert list(lost(dashboard, again(dashboard))) == []
    dashboard["panels"][0]["fieldConfig"]["defaults"]["units"] = "short"
    dashboard["panels"][2]["targets"][1]["expression"] = "x"
    assert list(lost(dashboard, again(dashboard))) == [
        "/panels/0/fieldConfig/defaults/units",
        "/panels/2/targets/1/expression",
    ]
