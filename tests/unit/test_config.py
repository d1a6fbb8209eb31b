"""Config: every problem is reported at once, each with file, line, key, what is wrong and how to mend it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config import Config, ConfigError, Limits, Route, load_config, parse_config
from gateway.config.check import cross_check
from gateway.config.document import read_document
from gateway.config.kinds import kind_of
from gateway.config.model import Match
from gateway.config.schema import json_schema
from gateway.config.values import (
    parse_address,
    parse_delay,
    parse_endpoint,
    parse_percent,
    parse_rate,
    parse_seconds,
    parse_size,
    parse_switch,
    show_size,
)
from tests.bench.load import make_certificate

CONFIGS = Path(__file__).parents[2] / "config"
GOOD = """
upstreams:
  asr:
    endpoints: [http://127.0.0.1:5000]
routes:
  - name: a
    match: {prefix: /}
    forward: {upstream: asr}
"""


def problems(text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yaml", environment)
    return [str(problem) for problem in caught.value.problems]


def test_trusted_network_of_mapped_addresses_is_that_of_ipv4() -> None:
    config = parse_config(
        "trusted_proxies: ['::ffff:10.0.0.0/104', 'fd00::/8']\nroutes: [{name: a, match: {}, files: {directory: .}}]"
    )
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "fd00::/8"]


def test_defaults_are_those_of_the_documentation() -> None:
    config = parse_config(GOOD)
    assert str(config.listen) == "127.0.0.1:8080"
    assert str(config.ops.listen) == "127.0.0.1:9090"
    route = config.routes[0]
    assert route.limits.max_body == 10 * 2**30
    assert route.limits.max_parts == 64
    assert route.timeouts.min_rate == 1024
    assert math.isinf(route.timeouts.total)
    assert route.action_name == "forward"
    assert config.upstreams["asr"].timeouts.connect == 2


def test_the_documented_example_is_accepted(tmp_path: Path) -> None:
    text = f"""
listen: 127.0.0.1:8080
ops:
  listen: 127.0.0.1:9090
upstreams:
  asr:
    endpoints: [http://127.0.0.1:5000, http://127.0.0.1:5001]
    policy: round_robin
    timeouts: {{connect: 2s, response: 60s, idle: 60s}}
    health: {{path: /healthz, interval: 5s, timeout: 2s, passes: 1, fails: 2}}
    ejection: {{failures: 5, duration: 30s, max_percent: 50}}
    retries: {{attempts: 2, budget: 20%}}
    max_in_flight: unlimited
    max_queued: 100
    queue_timeout: 10s
routes:
  - name: transcribe
    match: {{host: asr.example, path: /v1/transcribe, methods: [POST]}}
    forward: {{upstream: asr, rewrite: /transcribe, multipart: inspect}}
    limits: {{max_body: 10GiB, max_parts: 64, max_part: 10GiB, max_field: 1MiB, max_part_headers: 16KiB}}
    timeouts: {{idle: 60s, min_rate: 1KiB/s, grace: 20s, total: off}}
  - name: upload
    match: {{path: /upload, methods: [POST, PUT]}}
    store: {{directory: {tmp_path}, name: original, if_exists: rename}}
  - name: download
    match: {{prefix: /files/}}
    files: {{directory: {tmp_path}}}
  - name: fetch
    match: {{prefix: /fetch/}}
    fetch: {{allow: ["https://models.example/"], private_networks: deny}}
"""
    assert [route.action_name for route in parse_config(text).routes] == ["forward", "store", "files", "fetch"]


def test_all_of_five_different_mistakes_are_reported_with_line_and_how_to_mend_it() -> None:
    text = """
listen: 127.0.0.1
upstreams:
  asr:
    endpoints: [http://127.0.0.1:5000]
    timeouts: {connect: 2 parsecs}
routes:
  - name: a
    match: {prefix: /a}
    forward: {upstream: azr}
    limits: {max_bodi: 1GiB}
  - name: a
    match: {prefix: /a/}
    forward: {upstream: asr}
"""
    found = problems(text)
    assert found == [
        "c.yaml:2: listen: '127.0.0.1' is not an address: write host:port, for example 127.0.0.1:8080",
        "c.yaml:6: upstreams.asr.timeouts.connect: '2 parsecs' is not a time: "
        "write seconds (30), a unit (250ms, 30s, 5m, 1h) or off",
        "c.yaml:10: routes.a.forward.upstream: no upstream 'azr': use one of upstreams (asr)",
        "c.yaml:11: routes.a.limits.max_bodi: unknown key: "
        "use one of max_body, max_field, max_held, max_part, max_part_headers, max_parts",
        "c.yaml:12: routes.a.name: routes[0] already has the name 'a': choose another",
        "c.yaml:13: routes.a.match: never reached: route 'a' takes every such request; remove one or narrow its match",
    ]


ROUTE = "routes: [{name: a, match: {prefix: /}, fetch: {allow: ['http://x/']}}]\n"
WRONG = {
    "upstreams: {queue_timeout: {endpoints: ['http://x'], add: 1}}": "upstreams.queue_timeout.add: unknown key",
    "": "1: the file is empty",
    "# only a comment\n": "1: the file is empty",
    "null": "1: the file contains only null",
    "a: \x01": "1: not YAML",
    "a: b\nc: \0\n": "2: not YAML: the character U+0000 is not allowed",
    "a: &x {b: *x}\n" + ROUTE: "1: an alias contains itself",
    "a: &x {<<: *x}\n" + ROUTE: "1: an alias contains itself",
    "a: {<<: 5}\n" + ROUTE: "1: << takes a mapping",
    "a: " + "[" * 1500: "1: values are nested too deeply",
    "a: " + "[" * 700 + "]" * 700 + "\n" + ROUTE: "1: values are nested too deeply",
    ROUTE + "---\n" + ROUTE: "2: not YAML: expected a single document",
    "a: !!python/object/apply:os.system [id]\n" + ROUTE: "python/object/apply:os.system' is not supported: remove it",
    "a: !!python/name:os.system\n" + ROUTE: "python/name:os.system' is not supported: remove it",
    "listen: !!bool maybe\n" + ROUTE: "listen: not a value of the type bool: 'maybe'",
    "drain_timeout: " + "9" * 5000 + "\n" + ROUTE: "drain_timeout: not a value of the type int: '999",
    "ops: [1]\n" + ROUTE: "ops: a list is not a mapping",
    "listen: {a: 1}\n" + ROUTE: "listen: ",
    "workers: 0\n" + ROUTE: "workers: 0 is not a number of workers: write 1 to 256, or auto",
    "workers: true\n" + ROUTE: "workers: true is not a number of workers",
    "workers: all\n" + ROUTE: "workers: 'all' is not a number of workers",
    '"a\\nb": 1\n' + ROUTE: "1: a b: unknown key",
    "routes: [{name: a, match: {headers: {x: 5}}, fetch: {allow: ['http://x/']}}]": "headers.x: 5 is not a string",
    "upstreams: {a: {endpoints: [http://x], max_queued: 1.5}}\n" + ROUTE: "max_queued: 1.5 is not a whole number",
    "upstreams: {a: {endpoints: [http://x], max_queued: '1.5'}}\n" + ROUTE: "max_queued: '1.5' is not a whole number",
    f"upstreams: {{a: {{endpoints: [http://x], max_queued: '{'1' * 5000}'}}}}\n" + ROUTE: "is not a whole number",
    "upstreams: {a: {endpoints: [http://x], max_queued: [1]}}\n" + ROUTE: "max_queued: a list is not a whole number",
    "upstreams: {a: {endpoints: [http://x], max_queued: {b: 1}}}\n"
    + ROUTE: "max_queued: a mapping is not a whole number",
    "max_connections: true\n" + ROUTE: "max_connections: true is not a whole number",
    "max_connections: 64.0\n" + ROUTE: "max_connections: 64.0 is not a whole number",
    "max_connections: null\n" + ROUTE: "max_connections: null is not a whole number",
    f"drain_timeout: {'9' * 400}\n" + ROUTE: "drain_timeout: not a value of the type int: '999",
    "drain_timeout: 1.0e999\n" + ROUTE: "drain_timeout: not a value of the type float: '1.0e999'",
    "drain_timeout: !!float nan\n" + ROUTE: "drain_timeout: not a value of the type float: 'nan'",
    "drain_timeout: '\u0663s'\n" + ROUTE: "is not a time",
    f"routes: [{{name: a, match: {{}}, fetch: {{}}, limits: {{max_body: '{'9' * 400}TiB'}}}}]": "is not a size",
    "routes: [{name: a, match: {}, fetch: {}, filters: [compress: {level: 10}]}]": "level: 10 is too large: write 9 or",
    'tls: {certificate: "a\\0", key: b}\n' + ROUTE: "tls.certificate: the character U+0000 is not allowed: remove it",
    'ops: {token: "\\ud800"}\n' + ROUTE: "ops.token: the character U+D800 is not allowed: remove it",
    '"\\0": 1\n' + ROUTE: "1: the character U+0000 is not allowed: remove it",
    '"\\e[2J": 1\n' + ROUTE: "1: \\x1b[2J: unknown key",
    "upstreams: {a: {endpoints: ['http://x:0']}}\n" + ROUTE: "'http://x:0' is not an endpoint",
    "[a, b]": "1: a config is a mapping",
    "a: [b": "not YAML",
    "a: b\n\tc: d": "2: not YAML",
    "a: &x [*x]\n" + ROUTE: "an alias contains itself",
    "routes: []": "routes: the list is empty: give at least one item",
    "routes: 5": "routes: 5 is not a list",
    "listen: 127.0.0.1:1\n": "routes: the key is missing",
    "listen: 127.0.0.1:1\nlisten: 127.0.0.1:2\n" + ROUTE: "2: listen: duplicate key, first on line 1",
    "? [a, b]\n: c\n" + ROUTE: "a key must be a string",
    "ops: 5\n" + ROUTE: "ops: 5 is not a mapping",
    "ops: {listne: 127.0.0.1:1}\n" + ROUTE: "ops.listne: unknown key: use one of allow_hosts, drain, listen, token",
    "upstreams: {'a b': {endpoints: [http://x]}}\n" + ROUTE: "upstreams.a b: 'a b' is not a name",
    "upstreams: {a: {endpoints: []}}\n" + ROUTE: "upstreams.a.endpoints: the list is empty",
    "upstreams: {a: {endpoints: [http://x], policy: rr}}\n"
    + ROUTE: "policy: 'rr' is not a valid value: write 'round_robin'",
    "upstreams: {a: {endpoints: [http://x], max_queued: -1}}\n" + ROUTE: "max_queued: -1 is too small: write 0 or more",
    "upstreams: {a: {endpoints: [http://x], max_in_flight: 0}}\n"
    + ROUTE: "max_in_flight: 0 is too small: write more than 0",
    "upstreams: {a: {endpoints: [http://x], max_queued: many}}\n" + ROUTE: "max_queued: 'many' is not a whole number",
    "trusted_proxies: [10.0.0.1/8]\n" + ROUTE: "trusted_proxies[0]: '10.0.0.1/8' is not a network",
    "routes: [{name: a, match: {prefix: /}}]": "routes.a: the route has no action: add one of forward, split,",
    "routes: [{name: a, match: {prefix: /}, forward: null}]": "routes.a: the route has no action",
    "routes: [{name: a, match: {prefix: /}, fetch: {allow: ['http://x/']}, files: {directory: /tmp}}]": "exactly one",
    "routes: [{name: a, match: {prefix: /, path: /}, fetch: {allow: ['http://x/']}}]": "one of path, prefix and regex",
    "routes: [{name: a, match: {prefix: /}, split: {upstream: u, filename_header: a b}}]": "is not a header name",
    "routes: [{name: a, match: {regex: '('}, fetch: {allow: ['http://x/']}}]": "is not a regular expression",
    "routes: [{name: a, match: {regex: 'a{9999999999}'}, fetch: {}}]": "is not a regular expression: the repetition",
    f"routes: [{{name: a, match: {{regex: '{'(' * 5000}'}}, fetch: {{}}}}]": "has too many groups within each other",
    "routes: [{name: a, match: {regex: [a]}, fetch: {}}]": "match.regex: a list is not a string",
    "routes: [{name: a, match: {path: x}, fetch: {allow: ['http://x/']}}]": "begin with a slash: write /x",
    "routes: [{name: a, match: {methods: ['G T']}, fetch: {allow: ['http://x/']}}]": "is not an HTTP method",
    "routes: [{name: a, match: {host: 'a:1'}, fetch: {allow: ['http://x/']}}]": "is not a host",
    "routes: [{name: a, match: {}, fetch: {allow: ['x']}}]": "fetch.allow[0]: 'x' is not a URL prefix",
    "routes: [{name: a, match: {}, fetch: {allow: ['http://u:p@x/']}}]": "allow[0]: a URL prefix has no user name",
    "routes: [{name: a, match: {}, fetch: {allow: ['http://[x/']}}]": "is not a URL prefix",
    "routes: [{name: a, match: {}, fetch: {allow: [5]}}]": "5 is not a string",
    "routes: [{name: a, match: {}, files: {directory: /does/not/exist}}]": "is not a directory: create it",
    f"routes: [{{name: a, match: {{}}, files: {{directory: {'a' * 5000}}}}}]": "is not a directory: create it",
    "routes: [{name: a, match: {}, files: {directory: '${NOPE}'}}]": "the environment variable NOPE is not set: set it",
    "routes: [{name: a, match: {}, files: {directory: ${NOPE}}}]": 'put "${...}" in quotes',
    "routes: [{name: 5, match: {}, fetch: {allow: ['http://x/']}}]": "routes[0].name: 5 is not a string",
    "routes: [x]": "routes[0]: 'x' is not a mapping",
    ROUTE + "other: {deep: {deeper: 1}}": "other: unknown key",
    "upstreams: {a: {endpoints: [http://x], health: {path: /h, whim: 1}}}\n" + ROUTE: "health.whim: unknown key",
}


@pytest.mark.parametrize("text", WRONG)
def test_mistake_is_reported(text: str) -> None:
    found = problems(text)
    assert any(WRONG[text] in problem for problem in found), found
    assert all(problem.startswith("c.yaml:") and problem.isprintable() and len(problem) < 1000 for problem in found)


def test_missing_file_and_binary_file_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(ConfigError, match=r"binary.yaml:2: cannot be read: it is not UTF-8 text, see its byte 8;"):
        load_config(tmp_path / "binary.yaml")


def test_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: cannot be read: it has more than 8388608 bytes"):
        load_config(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["\ufeff" + ROUTE, ROUTE.replace("\n", "\r\n")], ids=["byte order mark", "CRLF"])
def test_file_of_another_system_is_read(text: str) -> None:
    assert parse_config(text).routes[0].name == "a"


@pytest.mark.parametrize("link", ["[{}]", "{{<<: [{}], b: 1}}"], ids=["values", "merges"])
def test_aliases_nested_in_each_other_are_bounded(link: str) -> None:
    """They multiply: these few lines are 9**9 values, and ended in a MemoryError after 2 GiB."""
    lines = ["a0: &a0 {k: [1, 2, 3, 4, 5, 6, 7, 8, 9]}"]
    for level in range(1, 10):
        more = f", c{{}}: *a{level - 1}" if link.startswith("{{") else ""
        body = link.format(", ".join([f"*a{level - 1}"] * 9))
        lines.append(f"a{level}: &a{level} {body[:-1]}{more.format(level)}{body[-1]}")
    lines += [f"x{number}: *a9" for number in range(1000)]
    assert problems("\n".join(lines) + "\n" + ROUTE) == [
        "c.yaml:1: aliases repeat more than 200000 values: nest them less deeply"
    ]


def test_merge_keys_follow_their_order_and_may_be_nested() -> None:
    text = """
routes:
  - name: a
    match: {prefix: /a}
    fetch: {allow: [http://x/]}
    limits: &a {max_parts: 1, max_part: 1}
  - name: b
    match: {prefix: /b}
    fetch: {allow: [http://x/]}
    limits: &b {<<: *a, max_parts: 2, max_field: 2}
  - name: c
    match: {prefix: /c}
    fetch: {allow: [http://x/]}
    limits: {<<: [*b, *a], max_held: 3}
"""
    limits = parse_config(text).routes[2].limits
    assert (limits.max_parts, limits.max_part, limits.max_field, limits.max_held) == (2, 1, 2, 3)


@pytest.mark.parametrize(
    "match", ["path: /p{}", "path: /, headers: {{x: h{}}}", "host: h{}.example", "methods: [M{}, GET]"]
)
def test_check_takes_as_many_steps_more_as_there_are_routes_more(match: str) -> None:
    """Each route was compared with all before it: 20,000 took almost five minutes."""

    def steps(count: int) -> int:
        route = "- {{name: r{}, match: {{" + match + "}}, fetch: {{allow: ['http://x/']}}}}\n"
        routes = parse_config("routes:\n" + "".join(route.format(number, number) for number in range(count))).routes
        tree = {"routes": [{"match": each.match.show()} for each in routes]}
        calls = 0

        def count_call(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count_call)
        list(cross_check(tree))
        sys.setprofile(None)
        return calls

    steps(1)
    assert steps(200) < 2.5 * steps(100)


SECRET = "hunter2\\and'more"


@pytest.mark.parametrize(
    "text",
    [
        "listen: ${SECRET}\n" + ROUTE,
        "ops: {token: ['${SECRET}']}\n" + ROUTE,
        "upstreams: {u: {endpoints: ['http://user:${SECRET}@h:x']}}\n" + ROUTE,
        "upstreams: {u: {endpoints: [http://x], max_queued: '${SECRET}'}}\n" + ROUTE,
        "upstreams: {u: {endpoints: [http://x], health: '${SECRET}'}}\n" + ROUTE,
        "routes: [{name: '${SECRET}', match: {prefix: x}, forward: {upstream: '${SECRET}'}}]",
        "routes: [{name: a, match: {regex: '(${SECRET}'}, files: {directory: '${SECRET}'}}]",
        "routes: [{name: a, match: {methods: ['${SECRET}']}, split: {upstream: x, filename_header: '${SECRET}'}}]",
    ],
)
def test_value_of_an_environment_variable_is_not_shown_in_problems(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environment={"SECRET": SECRET})
    shown = str(caught.value)
    assert "hunter2" not in shown
    assert "${SECRET}" in shown or "ops.token" in shown


def test_short_value_is_hidden_where_it_is_quoted() -> None:
    with pytest.raises(ConfigError, match=r"max_queued: '\$\{A\}' is not a whole number: write one like 64"):
        parse_config("upstreams: {u: {endpoints: [http://x], max_queued: '${A}'}}\n" + ROUTE, environment={"A": "on"})


def test_config_hides_the_values_of_its_variables() -> None:
    config = parse_config(
        "routes: [{name: a, match: {headers: {x: '${KEY}'}}, fetch: {allow: ['http://x/']}}]",
        environment={"KEY": "secret"},
    )
    assert config.hide("x: secret, y: 'secret'") == "x: ${KEY}, y: '${KEY}'"
    assert parse_config(ROUTE).hide("x") == "x"


def test_environment_variables_are_substituted_in_values_of_any_type() -> None:
    plain = GOOD + "    limits:\n      max_parts: ${PARTS:-7}\n      max_body: ${BODY}\n"
    limits = parse_config(plain, environment={"BODY": "5MiB"}).routes[0].limits
    assert (limits.max_parts, limits.max_body) == (7, 5 * 2**20)
    assert parse_config(plain, environment={"BODY": "1", "PARTS": "9"}).routes[0].limits.max_parts == 9


def test_merge_keys_and_scalars_of_yaml_1_2() -> None:
    text = """
upstreams:
  base: &base
    endpoints: [http://127.0.0.1:1]
    timeouts: {idle: off}
  other:
    <<: *base
    max_queued: 5
routes:
  - name: a
    match: {prefix: /}
    forward: {upstream: other}
"""
    upstream = parse_config(text).upstreams["other"]
    assert math.isinf(upstream.timeouts.idle)
    assert upstream.max_queued == 5


@pytest.mark.parametrize(
    ("first", "second", "is_reached"),
    [
        ("{prefix: /a}", "{prefix: /a}", False),
        ("{prefix: /a}", "{prefix: /a, methods: [GET]}", True),
        ("{prefix: /a, methods: [GET, POST]}", "{prefix: /a, methods: [GET]}", False),
        ("{prefix: /a, methods: [GET]}", "{prefix: /a, methods: [GET, POST]}", True),
        ("{prefix: /a, methods: [GET]}", "{prefix: /a}", True),
        ("{prefix: /a}", "{prefix: /a, headers: {x: y}}", True),
        ("{prefix: /a, headers: {x: y}}", "{prefix: /a, headers: {x: y}}", False),
        ("{prefix: /a}", "{path: /a}", True),
        ("{regex: a+}", "{regex: a+}", False),
        ("{regex: a+}", "{regex: b+}", True),
        ("{host: a}", "{host: b}", True),
    ],
)
def test_route_that_is_never_reached_is_reported(first: str, second: str, is_reached: bool) -> None:
    def route(name: str, match: str) -> str:
        return f"  - {{name: {name}, match: {match}, fetch: {{allow: ['http://x/']}}}}\n"

    text = "routes:\n" + route("a", first) + route("b", second)
    if is_reached:
        parse_config(text)
    else:
        assert "never reached" in problems(text)[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KiB", 2**19),
        ("10GiB", 10 * 2**30),
        ("1MB", 10**6),
        (7, 7),
        ("7", 7),
        ("1.5KiB", 1536),
        (1.5, 1.5),
        ("unlimited", math.inf),
    ],
)
def test_sizes_are_parsed_to_bytes(text: object, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600), (2, 2), (0.5, 0.5), ("off", math.inf)],
)
def test_times_are_parsed_to_seconds(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


def test_rates_are_parsed_to_bytes_per_second() -> None:
    assert parse_rate("1KiB/s") == 1024
    assert parse_rate("off") == 0


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), ("12.5 %", 0.125), (50, 0.5), ("0", 0), ("100%", 1)])
def test_percentages_are_parsed_to_shares(text: object, share: float) -> None:
    assert parse_percent(text) == share


@pytest.mark.parametrize("text", ["", "%", "101%", -1, "1e1", "nan", True, None])
def test_invalid_percentage_is_reported(text: object) -> None:
    with pytest.raises(ValueError, match="is not a percentage"):
        parse_percent(text)


@pytest.mark.parametrize("text", ["", "10 GiBs", -1, "-1", True, None, [], "1e3"])
def test_invalid_size_is_reported(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "0", 0, -1, "1d", True, None])
def test_invalid_time_is_reported(text: object) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "unlimited", "fast", None])
def test_invalid_rate_is_reported(text: object) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(text)


def test_addresses_and_endpoints_are_parsed_or_refused() -> None:
    assert str(parse_address(":80")) == "0.0.0.0:80"
    assert str(parse_address("[::1]:80")) == "[::1]:80"
    assert parse_endpoint("https://[::1]").authority == "[::1]"
    assert parse_endpoint("http://a_b:81/").authority == "a_b:81"
    for text in ("a", "a:b", "a:99999", "::1:80", None):
        with pytest.raises(ValueError, match="is not an address"):
            parse_address(text)
    with pytest.raises(ValueError, match="an endpoint has no user name and no password: remove them"):
        parse_endpoint("http://user:secret@h")
    for text in ("a", "http://", "http://h?q", "http://h:x", "http://a b", None):
        with pytest.raises(ValueError, match="is not an endpoint"):
            parse_endpoint(text)
    with pytest.raises(ValueError, match="has a path"):
        parse_endpoint("http://h/path")


def test_sizes_are_shown_with_their_unit() -> None:
    assert show_size(2**31) == "2147483648 bytes (2 GiB)"
    assert show_size(5) == "5 bytes"
    assert show_size(math.inf) == "unlimited"


def test_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["properties"]) == set(Config.keys)
    # Defaults as they are written in a config: infinity is no JSON.
    json.dumps(schema, allow_nan=False)
    assert schema["$defs"]["Upstream"]["properties"]["max_in_flight"]["default"] == "unlimited"
    jsonschema.Draft202012Validator.check_schema(schema)


SCHEMA = jsonschema.Draft202012Validator(json_schema())
FILTERS = (
    "filters: [digest, sniff: {allow: [image/*]}, mine: {a: 1}, mine, throttle: {rate: 5MB/s, per: client}, compress: ]"
)


@pytest.mark.parametrize(
    "text",
    [*(path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))), GOOD + f"    {FILTERS}", GOOD + "workers: auto"],
)
def test_schema_accepts_what_the_gateway_accepts(text: str) -> None:
    assert [error.message for error in SCHEMA.iter_errors(read_document(text).tree)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "routes: []",
        GOOD + "bogus: 1",
        GOOD + "max_connections: 0",
        GOOD + "workers: 0",
        GOOD + "ops: {drain: maybe}",
        GOOD + "lanes: fast",
        GOOD + "    filters: [{digest: {algorithm: rot13}}]",
        GOOD + "    filters: [{digest: {}, mine: {}}]",
        GOOD + "    filters: [7]",
        GOOD.replace("upstream: asr}", "}"),
    ],
)
def test_schema_refuses_mistakes_that_need_one_key(text: str) -> None:
    assert list(SCHEMA.iter_errors(read_document(text).tree))
    with pytest.raises(ConfigError):
        parse_config(text)


WITH_VARIABLES = """
workers: ${WORKERS:-1}
max_connections: ${CONNECTIONS}0
lanes: ${LANES:-copy}
drain_delay: ${DELAY}
ops: {drain: "${DRAIN:-on}", listen: "127.0.0.1:${PORT}"}
upstreams: {asr: {endpoints: ["http://${HOST:-asr}:5000"], policy: "${POLICY}", retries: {attempts: "${ATTEMPTS}"}}}
routes:
  - {name: "${NAME}", match: {prefix: /}, forward: {upstream: asr}, filters: [compress: {level: "${LEVEL:-1}"}]}
"""


def test_schema_and_gateway_accept_variables_in_place_of_any_scalar() -> None:
    # As an editor reads it, with the variables as they stand.
    assert [error.message for error in SCHEMA.iter_errors(yaml.safe_load(WITH_VARIABLES))] == []
    environment = {"CONNECTIONS": "10", "DELAY": "5", "PORT": "9", "POLICY": "random_two", "ATTEMPTS": "3", "NAME": "a"}
    config = parse_config(WITH_VARIABLES, environment=environment)
    assert (config.workers, config.max_connections, config.lanes, config.drain_delay) == (1, 100, "copy", 5.0)
    assert (config.ops.drain, config.ops.listen.port) == (True, 9)
    assert (config.upstreams["asr"].policy, config.upstreams["asr"].retries.attempts) == ("random_two", 3)
    assert parse_config(GOOD + 'workers: "${WORKERS}"', environment={"WORKERS": "2"}).workers == 2


def test_schema_of_every_scalar_accepts_a_variable() -> None:
    document = json_schema()
    sections = [document, *document["$defs"].values()]
    schemas = [(each["title"], *key) for each in sections for key in each["properties"].items()]
    rest = [
        f"{title}.{name}"
        for title, name, schema in schemas
        if not any(word in json.dumps(schema) for word in ('"$ref"', '"array"', '"object"'))
        and not jsonschema.Draft202012Validator(schema).is_valid("${NAME:-1}0")
    ]
    assert rest == []


def test_effective_config_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(parse_config(GOOD).show()))["routes"][0]["timeouts"]["total"] == "off"


def test_section_may_be_made_of_values_that_were_read() -> None:
    config = parse_config(GOOD + "trusted_proxies: [10.0.0.0/8]\n")
    again = Config(**{name: getattr(config, name) for name in config.written})
    assert again == config
    assert again != Config(routes=config.routes)
    assert config.routes[0].limits != config.routes[0].timeouts
    assert parse_address(config.listen) is config.listen
    with pytest.raises(TypeError, match="Config has no route"):
        Config(routes=config.routes, route=1)
    with pytest.raises(TypeError, match="Route needs match"):
        Route(name="a")


def test_whole_numbers_may_be_written_in_quotes() -> None:
    assert parse_config("max_connections: '${COUNT}'\n" + GOOD, environment={"COUNT": "4"}).max_connections == 4


def test_annotation_that_no_kind_reads_is_refused() -> None:
    with pytest.raises(TypeError, match="no kind reads values of list"):
        kind_of(list[str])


def test_section_is_immutable() -> None:
    with pytest.raises(AttributeError, match="Limits is immutable"):
        Limits().max_parts = 1


def test_action_of_a_route_without_one_raises() -> None:
    with pytest.raises(ValueError, match="has no action"):
        Route(name="a", match=Match()).action_name  # noqa: B018 (the property raises)


def test_route_reports_the_directory_it_writes_to() -> None:
    mirror = {"directory": "/m", "percent": 1}
    for action, directory in (
        ({"store": {"directory": "/s"}}, "/s"),
        ({"store": {"url": "s3://bucket/p"}}, None),
        ({"forward": {"upstream": "u", "mirror": mirror}}, "/m"),
        ({"forward": {"upstream": "u"}}, None),
        ({"files": {"directory": "/f"}}, None),
    ):
        route = Route.read({"name": "a", "match": {}, **action}, (), [])
        assert route is not None
        assert route.written_directory == directory


def _written(directory: Path, text: str) -> Path:
    path = directory / "c.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_valid_certificate_and_key_are_accepted(certificate: Path) -> None:
    config = parse_config(f"tls: {{certificate: {certificate}, key: {certificate}}}\n" + GOOD)
    assert config.tls is not None
    assert config.tls.key == str(certificate)


def test_tls_files_that_are_missing_or_invalid_are_reported(certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    missing = problems(f"tls: {{certificate: /no/such.pem, key: {certificate}}}\n" + GOOD)
    assert missing == ["c.yaml:1: tls.certificate: '/no/such.pem' cannot be read: check the path and the file's mode"]
    (unusable,) = problems(f"tls: {{certificate: {tmp_path / 'bad.pem'}, key: {certificate}}}\n" + GOOD)
    assert unusable.startswith("c.yaml:1: tls: certificate and key cannot be used (")
    (wrong,) = problems("tls: {certificate: 1, key: 2}\n" + GOOD)[:1]
    assert "is not a string" in wrong


def test_route_reports_its_upstream() -> None:
    split = parse_config(GOOD.replace("forward: {", "split: {filename_header: X-Name, "))
    assert (parse_config(GOOD).routes[0].upstream, split.routes[0].upstream) == ("asr", "asr")
    fetch = parse_config("routes: [{name: a, match: {prefix: /}, fetch: {allow: ['http://x/']}}]")
    assert fetch.routes[0].upstream == ""


def test_filters_are_names_with_or_without_options() -> None:
    text = (
        GOOD
        + "    filters: [digest, {sniff: {allow: [image/*]}}, {mine: {a: 1}}, {throttle: {rate: 5MB/s}}, {compress: }]"
    )
    route = parse_config(text).routes[0]
    assert [choice.name for choice in route.filters] == ["digest", "sniff", "mine", "throttle", "compress"]
    for address in ("unix:/run/clamd.ctl", "127.0.0.1:3310"):
        scan = parse_config(GOOD + f"    filters: [{{scan: {{clamd: '{address}'}}}}]").routes[0].filters[0].options
        assert scan.clamd == address
    assert (route.filters[0].options.algorithm, route.filters[2].options) == ("sha256", {"a": 1})


@pytest.mark.parametrize("name", ["self", "read", "show", "written", "keys"])
def test_plug_in_may_have_any_name(name: str) -> None:
    config = parse_config(GOOD + f"    filters: [{{{name}: {{a: 1}}}}]")
    (choice,) = config.routes[0].filters
    assert (choice.name, choice.options) == (name, {"a": 1})
    assert config.show()["routes"][0]["filters"] == [{name: {"a": 1}}]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("[{digest: {}, sniff: {allow: [a/b]}}]", "a filter is one name with its options"),
        ("[{digest: {algorithm: rot13}}]", "routes.a.filters[0].digest.algorithm: 'rot13' is not a valid value"),
        ("[{throttle: {rate: 0}}]", "a rate of 0 stops every transfer"),
        ("[7]", "filters[0]"),
        ("[{scan: {clamd: /run/clamd.ctl}}]", "is not an address of clamd"),
    ],
)
def test_invalid_filters_are_reported(filters: str, message: str) -> None:
    assert any(message in problem for problem in problems(GOOD + f"    filters: {filters}\n"))


def test_filters_on_routes_without_readable_uploads_are_reported() -> None:
    opaque = GOOD.replace("upstream: asr}", "upstream: asr, multipart: opaque}") + "    filters: [digest]\n"
    assert "filters need multipart: inspect or strict" in problems(opaque)[0]
    shaped = problems(GOOD.replace("upstream: asr}", "upstream: asr, multipart: opaque, body: raw}"))
    assert "body needs multipart: inspect or strict" in shaped[0]
    fetch = "routes: [{name: a, match: {prefix: /}, fetch: {allow: ['http://x/']}, filters: [digest]}]"
    assert "filters apply to uploads" in problems(fetch)[0]


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("{percent: 5}", "a mirror has either an upstream or a directory"),
        ("{upstream: asr, directory: /tmp}", "a mirror has either an upstream or a directory"),
        ("{upstream: azr}", "no upstream 'azr'"),
        ("{directory: /no/such}", "is not a directory this user can write to"),
    ],
)
def test_mirrors_without_a_usable_target_are_reported(mirror: str, message: str) -> None:
    text = GOOD.replace("upstream: asr}", f"upstream: asr, mirror: {mirror}}}")
    assert any(message in problem for problem in problems(text))


STORE = "routes: [{{name: a, match: {{prefix: /}}, store: {store}}}]"


def test_files_go_to_a_directory_or_a_bucket() -> None:
    config = parse_config(STORE.format(store="{url: s3://my-bucket/a/b, endpoint: 'http://127.0.0.1:9000'}"))
    assert config.routes[0].store is not None
    assert config.routes[0].store.url == "s3://my-bucket/a/b"


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("{}", "store has either a directory or a url: give exactly one of them"),
        ("{directory: /tmp, url: s3://my-bucket}", "store has either a directory or a url: give exactly one of them"),
        ("{url: 'https://my-bucket'}", "is not a bucket URL: write s3://bucket/prefix"),
    ],
)
def test_invalid_store_targets_are_reported(store: str, message: str) -> None:
    assert any(message in problem for problem in problems(STORE.format(store=store)))


def test_directory_that_this_user_may_not_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may use any.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be read by this user"):
        parse_config("routes: [{name: a, match: {}, files: {directory: .}}]")


def test_missing_package_for_object_stores_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install obstore" in problems(STORE.format(store="{url: s3://my-bucket}"))[0]


@pytest.mark.parametrize(
    ("listen", "ops", "endpoint"),
    [
        ("127.0.0.1:80", "127.0.0.1:81", "http://127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.2:80", "http://10.0.0.1:80"),
        # Another machine may have the address or the name.
        ("0.0.0.0:80", "127.0.0.1:81", "http://10.0.0.1:80"),
        ("0.0.0.0:80", "[::1]:80", "http://other:80"),
        ("gateway:80", "other:80", "http://localhost:80"),
        ("127.0.0.1:0", "127.0.0.1:0", "http://x"),
    ],
)
def test_addresses_that_differ_are_accepted(listen: str, ops: str, endpoint: str) -> None:
    keys = f"listen: '{listen}'\nops: {{listen: '{ops}'}}\nupstreams: {{u: {{endpoints: ['{endpoint}']}}}}\n"
    parse_config(keys + ROUTE)


@pytest.mark.parametrize(
    ("listen", "ops"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "10.0.0.1:80"),
        ("127.0.0.1:80", "':80'"),
        ("'[::]:80'", "10.0.0.1:80"),
        ("localhost:80", "'[::1]:80'"),
        ("gateway:80", "gateway:80"),
        ("127.0.0.1:9090", None),
    ],
)
def test_ops_port_that_is_the_traffic_port_is_reported(listen: str, ops: str | None) -> None:
    text = f"listen: {listen}\n" + (f"ops: {{listen: {ops}}}\n" if ops else "") + ROUTE
    (found,) = problems(text)
    assert "ops.listen: " in found
    assert "overlaps listen" in found


@pytest.mark.parametrize(
    ("listen", "endpoint"),
    [
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("0.0.0.0:8080", "http://localhost:8080"),
        (":8080", "http://127.9.9.9:8080"),
        ("'[::]:8080'", "http://[::1]:8080"),
        ("0.0.0.0:8080", "http://0.0.0.0:8080"),
        ("gateway:8080", "http://gateway:8080"),
        ("", "https://localhost:8080"),
    ],
)
def test_endpoint_that_is_the_gateway_itself_is_reported(listen: str, endpoint: str) -> None:
    text = (f"listen: {listen}\n" if listen else "") + f"upstreams: {{u: {{endpoints: [http://x, '{endpoint}']}}}}\n"
    (found,) = problems(text + ROUTE)
    assert f"upstreams.u.endpoints[1]: '{endpoint}' is the gateway itself" in found


def test_addresses_that_cannot_be_read_are_reported_once() -> None:
    text = "listen: nowhere\nops: 5\nupstreams: {v: {endpoints: 5}, w: 5}\n"
    keys = ["listen", "ops", "upstreams.v.endpoints", "upstreams.w"]
    assert [problem.split(": ")[1] for problem in problems(text + ROUTE)] == keys
    text = "upstreams: 5\nops: {listen: x}\n"
    assert [problem.split(": ")[1] for problem in problems(text + ROUTE)] == ["upstreams", "ops.listen"]
    text = "upstreams: {u: {endpoints: [http://x, x]}, v: 5}\n"
    assert [problem.split(": ")[1] for problem in problems(text + ROUTE)] == ["upstreams.u.endpoints[1]", "upstreams.v"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(0, 0), ("0s", 0), ("0", 0), ("0ms", 0), ("0.0m", 0), (0.0, 0), ("250ms", 0.25), (5, 5)],
)
def test_delays_may_be_0(text: object, seconds: float) -> None:
    assert parse_delay(text) == seconds


@pytest.mark.parametrize("text", ["off", -1, "soon", None, False, "-0s"])
def test_invalid_delay_is_reported(text: object) -> None:
    with pytest.raises(ValueError, match="is not a delay: write seconds"):
        parse_delay(text)


def test_switches_are_on_or_off() -> None:
    assert [parse_switch(value) for value in ("on", True, "off", False)] == [True, True, False, False]
    with pytest.raises(ValueError, match="'yes' is not a switch: write on or off"):
        parse_switch("yes")
    config = parse_config("ops: {drain: on}\n" + ROUTE)
    assert config.ops.drain
    assert config.show()["ops"]["drain"] == "on"


def test_token_may_be_left_empty_and_is_not_shown() -> None:
    text = "ops:\n  token: ${OPS_TOKEN:-}\n" + ROUTE
    assert parse_config(text, environment={}).ops.token is None
    (problem,) = problems("ops: {token: 5551234}\n" + ROUTE)
    assert problem == "c.yaml:1: ops.token: the value is not a string: put it in quotes"
    config = parse_config(text, environment={"OPS_TOKEN": "hidden"})
    assert config.ops.token is not None
    assert config.ops.token.reveal() == "hidden"
    assert "hidden" not in json.dumps(config.show()) + repr(vars(config.ops))
