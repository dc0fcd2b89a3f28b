# SPDX-License-Identifier: Apache-2.0
"""Prometheus accepts its configuration and every query of the dashboard."""

import json
from pathlib import Path

import yaml

from tests.deploy.tools import DASHBOARD, DEPLOY, tool


def queries() -> list[str]:
    """Those of the dashboard's panels, with Grafana's variables as they are by default."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [
        query.replace("$__rate_interval", "1m").replace("$model_name", ".*").replace("$engine", ".*") for query in found
    ]


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
