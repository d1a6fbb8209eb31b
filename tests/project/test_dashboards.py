"""Dashboards of deploy/grafana: written from their code, of Grafana's schema, and of metrics that exist."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.__main__ import FOLDER, PAGES, render
from gateway.observe.prometheus import METRICS
from tests.project.test_deploy import series_names

#: What Grafana itself replaces in queries.
BUILT_IN = {"__rate_interval", "__range"}


def dashboard(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> list[str]:
    return [target["expr"] for panel in panels(name) for target in panel["targets"]]


def test_every_dashboard_is_as_its_code_writes_it() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PAGES)
    for name in PAGES:
        assert (FOLDER / f"{name}.json").read_text() == render(name), "run `make docs`"


@pytest.mark.parametrize("name", PAGES)
def test_dashboard_has_no_key_that_grafanas_schema_does_not_know(name: str) -> None:
    """Read with the types of the SDK, which drop what they do not know, and written again."""
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard(name))))
    for variable in read["templating"]["list"]:
        # The SDK adds the keys of interval variables to all.
        del variable["auto"], variable["auto_min"], variable["auto_count"]
    assert read == dashboard(name)


@pytest.mark.parametrize("name", PAGES)
def test_panels_have_a_title_a_meaning_and_a_unit_and_do_not_overlap(name: str) -> None:
    boxes = []
    for panel in dashboard(name)["panels"]:
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        boxes.append((box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]))
    for (left, top, right, bottom), other in combinations(boxes, 2):
        assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith(".")
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"]
        elif panel["type"] != "state-timeline":
            assert panel["fieldConfig"]["defaults"]["unit"]
    numbers = [panel["id"] for panel in dashboard(name)["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("name", PAGES)
def test_queries_use_metrics_and_variables_that_exist(name: str) -> None:
    variables = {variable["name"] for variable in dashboard(name)["templating"]["list"]} | BUILT_IN
    for query in queries(name):
        assert set(re.findall(r"\bgateway_\w+", query)) <= series_names()
        assert set(re.findall(r"\$(\w+)", query)) <= variables
    assert {panel["datasource"]["uid"] for panel in panels(name)} == {"${datasource}"}


def test_dashboards_show_every_metric() -> None:
    used = {metric for name in PAGES for query in queries(name) for metric in re.findall(r"\bgateway_\w+", query)}
    shown = {re.sub("_(bucket|sum|count)$", "", metric) for metric in used} | used
    assert {metric.series for metric in METRICS.values()} <= shown
