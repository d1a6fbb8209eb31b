"""Warnings for timeouts that have no effect because of others."""

from __future__ import annotations

import pytest

from gateway.config import parse_config
from gateway.config.contradictions import find_contradictions

CONFIG = """
upstreams: {{up: {{endpoints: ['http://x'], timeouts: {{{upstream}}}}}}}
routes: [{{name: r, match: {{prefix: /}}, timeouts: {{{route}}}, {action}}}]
"""


def warnings(route: str = "", upstream: str = "", action: str = "forward: {upstream: up}") -> list[tuple[str, str]]:
    return list(find_contradictions(parse_config(CONFIG.format(route=route, upstream=upstream, action=action))))


@pytest.mark.parametrize(
    ("route", "key", "message"),
    [
        ("idle: 60s, total: 60s", "routes.r.timeouts.idle", "total ends every transfer after 60 s"),
        ("grace: 30s, total: 30s", "routes.r.timeouts.grace", "raise routes.r.timeouts.total"),
        ("grace: off", "routes.r.timeouts.grace", "min_rate is never measured"),
        ("grace: 10s, min_rate: off", "routes.r.timeouts.grace", "since min_rate is off"),
        ("idle: off", "routes.r.timeouts.idle", "keeps its connection and its slot forever"),
    ],
)
def test_timeout_of_a_route_without_effect_is_a_warning(route: str, key: str, message: str) -> None:
    [(found, text)] = warnings(route)
    assert found == key
    assert message in text


def test_timeout_of_an_upstream_without_effect_is_a_warning() -> None:
    [(key, message)] = warnings("total: 30s", "idle: 40s")
    assert key == "upstreams.up.timeouts.idle"
    assert "routes.r.timeouts.total ends every transfer after 30 s" in message
    [(key, message)] = warnings("", "idle: off")
    assert key == "upstreams.up.timeouts.idle"
    assert "min_rate is about trickling only" in message
    [(key, _)] = warnings("total: 30s", action="fetch: {allow: ['http://x/'], timeouts: {idle: 40s}}")
    assert key == "routes.r.fetch.timeouts.idle"


@pytest.mark.parametrize(
    ("route", "upstream"),
    [
        ("", ""),
        # What was not written need not be known.
        ("total: 5s", ""),
        ("min_rate: off", ""),
        ("idle: off, total: 1h", ""),
        ("idle: 10s, grace: 20s, total: 5m", "idle: 2m, response: 10m"),
    ],
)
def test_timeouts_that_do_not_contradict_each_other_are_not_reported(route: str, upstream: str) -> None:
    assert warnings(route, upstream) == []
    assert warnings(route, upstream, action="store: {directory: /tmp}") == []
