"""Queries of dashboards and recording rules return data from a real Prometheus that scrapes a gateway with traffic."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.__main__ import PAGES
from tests.peers import OK, RawUpstream, RunningGateway, Wire, form, post, read_request, responding, run_gateway
from tests.project.test_dashboards import dashboard, queries
from tests.prometheus import DEPLOY, SCRAPE_SECONDS, Prometheus, run_prometheus

CLOSED = "http://127.0.0.1:9"
FORM = form(("name=a", b"b"), ('name="f"; filename="x"', b"y" * 5000))
#: Until the rates of everything that happens have a value.
SECONDS = 30.0


async def respond_late(wire: Wire) -> None:
    """Respond to each request after a pause, in which others wait for the only slot."""
    while True:
        await read_request(wire)
        await asyncio.sleep(0.02)
        await wire.send(OK)


def gateway_config(good: str, slow: str, directory: Path) -> dict[str, Any]:
    """Return a config with an upstream that fails now and then, one with a queue, forms, a mirror and a store."""
    ejection = {"failures": 1, "duration": "10ms"}
    mirrored = {"upstream": "good", "mirror": {"upstream": "slow"}}
    return {
        "upstreams": {
            "good": {"endpoints": [good, CLOSED], "ejection": ejection},
            "slow": {"endpoints": [slow], "max_in_flight": 1},
        },
        "routes": [
            {"name": "forward", "match": {"path": "/forward"}, "forward": mirrored},
            {"name": "split", "match": {"path": "/split"}, "split": {"upstream": "slow"}},
            {"name": "store", "match": {"path": "/store"}, "store": {"directory": str(directory)}},
            {"name": "files", "match": {"prefix": "/files"}, "files": {"directory": str(directory)}},
        ],
    }


async def make_traffic(gateway: RunningGateway) -> None:
    """Send requests of all kinds until cancelled."""
    get = b"GET /files/x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
    while True:
        await asyncio.gather(
            *(gateway.request(post(FORM, target=target)) for target in ("/forward", "/split", "/split", "/store")),
            gateway.request(get),
            gateway.request(get.replace(b"/files/x", b"/files/missing")),
        )
        await asyncio.sleep(0.05)


async def assert_data(prometheus: Prometheus, query: str) -> None:
    """Assert that a query returns a number, soon."""
    # As Grafana does: four scrapes, and the range of the page.
    expr = query.replace("$__rate_interval", f"{round(4 * SCRAPE_SECONDS * 1000)}ms").replace("$__range", "10s")
    for name in ("instance", "route", "upstream"):
        expr = expr.replace(f"${name}", ".*")
    found: list[dict[str, Any]] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while not any(not math.isnan(float(each["value"][1])) for each in found):
                found = await prometheus.query(expr)
                await asyncio.sleep(0 if found else SCRAPE_SECONDS / 2)
            return
    raise AssertionError(f"no data: {expr}: {found}")


@pytest.mark.slow
@pytest.mark.expected_log("gateway.upstream", "is ejected", reason="an endpoint is down on purpose")
async def test_every_query_of_the_dashboards_and_every_recording_rule_returns_data(tmp_path: Path) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(RawUpstream(responding(OK)))
        slow = await stack.enter_async_context(RawUpstream(respond_late))
        gateway = await stack.enter_async_context(run_gateway(gateway_config(good.url, slow.url, directory)))
        targets = {"gateway": gateway.ops_url.removeprefix("http://")}
        prometheus = await stack.enter_async_context(run_prometheus(tmp_path, targets))
        traffic = asyncio.create_task(make_traffic(gateway))
        try:
            for name in PAGES:
                for query in queries(name):
                    await assert_data(prometheus, query)
            for name in recorded_series():
                await assert_data(prometheus, name)
            for name in PAGES:
                for annotation in dashboard(name)["annotations"]["list"]:
                    # No alert has to fire here: it must be PromQL.
                    await prometheus.query(annotation["expr"].replace("$instance", ".*"))
                for variable in dashboard(name)["templating"]["list"]:
                    if variable["type"] == "query":
                        await assert_values(prometheus, variable["query"])
        finally:
            traffic.cancel()
            await asyncio.wait([traffic])


def recorded_series() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "recording_rules.yaml").read_text())
    return [rule["record"] for group in rules["groups"] for rule in group["rules"]]


async def assert_values(prometheus: Prometheus, query: str) -> None:
    """Assert that a variable has values: `label_values(series, label)` lists those of a label."""
    series, _, label = query.removeprefix("label_values(").removesuffix(")").rpartition(", ")
    assert await prometheus.query(f"count by ({label}) ({series.replace('$instance', '.*')})"), query
