"""Whatever bytes a client puts into names, targets and values, the response is never a 500."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import strategies as st

from tests.fuzz.explore import explore_gateway
from tests.peers import OK, RawUpstream, RunningGateway, responding

pytestmark = pytest.mark.slow

ACTIONS: dict[str, dict[str, Any]] = {
    "forward": {"forward": {"upstream": "up", "host": "preserve"}},
    "strict": {"forward": {"upstream": "up", "multipart": "strict"}},
    "raw": {"forward": {"upstream": "up", "body": "raw", "filename_header": "X-Name"}, "filters": ["digest"]},
    "headers": {"forward": {"upstream": "up", "body": "raw", "form_fields": {"send": "headers"}}},
    "form": {"forward": {"upstream": "up", "body": "multipart", "rewrite": "/x/"}},
    "split": {
        "split": {"upstream": "up", "rewrite": "/s/{filename}"},
        "filters": [{"sniff": {"allow": ["text/plain"]}}, "digest"],
    },
    "splitraw": {"split": {"upstream": "up", "body": "raw"}},
    "store": {"store": {"directory": "{directory}"}, "filters": ["digest"]},
    "uuid": {"store": {"directory": "{directory}", "name": "uuid", "if_exists": "reject"}},
    "files": {"files": {"directory": "{directory}"}},
    "fetch": {"fetch": {"allow": ["{upstream}/a/"], "private_networks": "allow"}},
}


def make_config(upstream: str, directory: Path) -> dict[str, Any]:
    routes: list[dict[str, Any]] = []
    for name, keys in ACTIONS.items():
        ((action, values), *others) = keys.items()
        filled = {
            key: value.format(directory=directory)
            if key == "directory"
            else [text.format(upstream=upstream) for text in value]
            if key == "allow"
            else value
            for key, value in values.items()
        }
        routes.append({"name": name, "match": {"prefix": f"/{name}/"}, action: filled, **dict(others)})
    by_field = {"path": "/fields", "form_fields": {"a": "b"}}
    routes += [
        {"name": "field", "match": by_field, "forward": {"upstream": "up"}},
        {"name": "regex", "match": {"regex": "/regex/(.*)"}, "forward": {"upstream": "up", "rewrite": r"/r/\1"}},
    ]
    return {"upstreams": {"up": {"endpoints": [upstream]}}, "routes": routes, "trusted_proxies": ["127.0.0.0/8"]}


BYTES = st.one_of(
    st.binary(max_size=10),
    st.sampled_from(
        [
            b"a",
            b"\xff",
            b"\xed\xa0\x80",
            b"\xc3\xa4",
            b"\xe2\x80\xae",
            b"..",
            b"../x",
            b"a;b=c",
            b'a"b',
            b"a\\",
            b"{filename}",
            b"%s%n",
            b"con",
            b"x" * 300,
            b"a\tb",
            b"\0",
            b"",
            b"=?utf-8?b?AA==?=",
        ]
    ),
)
#: Without what ends a line, and what a parser may pass on: without control bytes.
VALUES = BYTES.map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))
TEXTS = BYTES.map(lambda value: re.sub(rb"[\x00-\x1f\x7f]", b"", value))
PRINTED = st.one_of(VALUES, VALUES.map(lambda value: quote_from_bytes(value, safe="").encode()))
#: Most often a valid target.
PATHS = st.one_of(PRINTED, *[BYTES.map(lambda value: quote_from_bytes(value, safe="/;:@").encode())] * 8)
HEADERS = st.sampled_from(
    [
        b"Accept",
        b"Connection",
        b"Content-Digest",
        b"Content-Disposition",
        b"Content-Encoding",
        b"Content-Type",
        b"Cookie",
        b"Expect",
        b"Forwarded",
        b"Host",
        b"If-Match",
        b"If-Modified-Since",
        b"If-None-Match",
        b"If-Range",
        b"Range",
        b"Repr-Digest",
        b"TE",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Proto",
        b"X-Request-Id",
        b"traceparent",
        b"tracestate",
    ]
)
KNOWN_VALUES = st.sampled_from(
    [
        b"bytes=0-0",
        b"bytes=-0",
        b"bytes=9-",
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        b"Thu, 01 Jan 99999 00:00:00 GMT",
        b"Thu, 01 Jan 0001 00:00:00 -2359",
        b"sha-256=:AA==:, sha-512=:!:",
        b"sha-256=::",
        b"attachment; filename*=UTF-8''%ff",
        b'attachment; filename="\xff"',
        b"100-continue",
        b"*",
        b'W/"a"',
        b"multipart/form-data",
        b"multipart/form-data; boundary=B",
    ]
)
URLS = st.sampled_from(
    [
        b"http://localhost./",
        b"http://[",
        b"http://[::1%25lo]/",
        b"http://xn--127001-/",
        b"http://%00/",
        b"http://1.2.3.4.5/",
        b"http://\xef\xbc\x91/",
        b"http:",
        b"//x",
        b"https://a@b/",
    ]
)


@st.composite
def requests(draw: Any) -> bytes:
    """Return a request whose names and values are of any bytes, and whose grammar is most often right."""
    route = draw(st.sampled_from([*(f"/{name}/" for name in ACTIONS), "/fields", "/regex/", "/"])).encode()
    rest = draw(st.one_of(PATHS, URLS)) if route == b"/fetch/" else draw(PATHS)
    target = route + rest.replace(b" ", b"") + draw(st.sampled_from([b""] * 9 + [b"?", b"?a=%ff", b"?\xff", b"?a=b#c"]))
    headers = [
        b"%s: %s" % (draw(HEADERS), draw(st.one_of(TEXTS, TEXTS, TEXTS, VALUES, KNOWN_VALUES)))
        for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3])))
    ]
    if draw(st.booleans()):
        body, kind = b"raw", draw(st.one_of(TEXTS, st.just(b"text/plain")))
    else:
        kind, body = b"multipart/form-data; boundary=B", b""
        for _ in range(draw(st.integers(1, 3))):
            body += b'--B\r\nContent-Disposition: form-data; name="' + draw(PRINTED) + b'"'
            if draw(st.booleans()):
                body += draw(st.sampled_from([b'; filename="%s"', b"; filename*=UTF-8''%s", b"; filename=%s"])) % draw(
                    PRINTED
                )
            extra = b"\r\n%s: %s" % (draw(HEADERS), draw(st.one_of(VALUES, KNOWN_VALUES)))
            body += draw(st.sampled_from([b"", extra])) + b"\r\n\r\n" + draw(BYTES) + b"\r\n"
        body += b"--B--\r\n"
    is_download = route in (b"/files/", b"/fetch/") or draw(st.integers(0, 9)) == 0
    method = draw(st.sampled_from([b"GET", b"GET", b"HEAD"] if is_download else [b"POST", b"POST", b"PUT"]))
    lines = [
        b"%s %s HTTP/1.1" % (method, target),
        b"Host: gw",
        b"Connection: close",
        b"Content-Type: " + kind,
        *headers,
    ]
    if method not in (b"GET", b"HEAD"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if method not in (b"GET", b"HEAD") else b"")


async def check(gateway: RunningGateway, upstream: RawUpstream, request: bytes) -> None:
    del upstream
    response = await gateway.request(request)
    assert response.startswith(b"HTTP/1.1 ") or b"\r\nExpect: 100-continue" in request
    assert not response.startswith(b"HTTP/1.1 500"), response
    assert all(line["outcome"] != "bug" for line in gateway.log)


def test_no_bytes_of_a_client_are_a_bug_of_the_gateway(tmp_path: Path) -> None:
    """A bug is logged as an error besides, which fails the test."""
    (tmp_path / "a.txt").write_bytes(b"data")
    explore_gateway(
        responding(OK), lambda upstream: make_config(upstream.url, tmp_path), requests(), check, examples=300
    )
