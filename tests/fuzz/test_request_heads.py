"""Request heads: what reaches the upstream, h11 reads from the client's bytes as well; anything else is refused."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
import pytest
from hypothesis import strategies as st

from tests.fuzz.explore import explore_gateway
from tests.peers import OK, RawUpstream, RunningGateway, forward_config, responding

pytestmark = pytest.mark.slow

LINES = st.one_of(
    st.sampled_from(
        [
            b"Host: gw",
            b"Host: gw:80",
            b"Host:",
            b"Host: a, b",
            b"Host: [::1]",
            b"Host : gw",
            b"Content-Length: 2",
            b"Content-Length: 02",
            b"Content-Length: 2, 2",
            b"Content-Length: +2",
            b"Content-Length: 3",
            b"Content-Length:",
            b"Content-Length : 2",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding:chunked ",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: \x0bchunked",
            b"Transfer_Encoding: chunked",
            b"Connection: close",
            b"Connection: content-length, transfer-encoding",
            b"Connection: keep-alive, Upgrade",
            b"Upgrade: websocket",
            b"Expect: 100-continue",
            b"X-Forwarded-For: 1.2.3.4",
            b" folded",
            b"X-A: a\rb",
            b"X-A: a\0b",
            b"X-A: \xff",
            b"X-A",
            b": b",
        ]
    ),
    st.binary(max_size=12),
)
REQUEST_LINES = st.one_of(
    st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"POST / HTTP/1.1",
            b"PUT /a?b HTTP/1.1",
            b"HEAD / HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"POST http://gw/x HTTP/1.1",
            b"GET http://a@b/ HTTP/1.1",
            b"POST / HTTP/1.0",
            b"GET / HTTP/0.9",
            b"GET / HTTP/1.2",
            b"GET /",
            b"FOO / HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"CONNECT gw:1 HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"",
        ]
    ),
    st.builds(b"GET /%s HTTP/1.1".__mod__, st.binary(max_size=6)),
)
ENDS = st.sampled_from([b"\r\n"] * 16 + [b"\n", b"\r", b"\r\r\n"])
LAST = b"GET /last HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
_PATIENCE_SECONDS = 0.05
BODIES = st.sampled_from(
    [
        b"",
        b"ok",
        b"okx",
        b"2\r\nok\r\n0\r\n\r\n",
        b"2;a=b\r\nok\r\n0\r\nContent-Length: 1\r\n\r\n",
        b"0x2\r\nok\r\n0\r\n\r\n",
    ]
)


@st.composite
def requests(draw: Any) -> bytes:
    """Return bytes that a client might send on one connection: requests with odd lines, a few bytes changed."""
    text = bytearray()
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        host = draw(st.sampled_from([[b"Host: gw"]] * 6 + [[]]))
        for line in [draw(REQUEST_LINES), *host, *draw(st.lists(LINES, max_size=3)), b""]:
            text += line + draw(ENDS)
        text += draw(BODIES)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2)):
        if text:
            text[at % len(text)] = value
    last: bytes = draw(st.sampled_from([LAST, LAST, LAST, b""]))
    return bytes(text) + last


Read = tuple[bytes, bytes]


def read_with_h11(received: bytes) -> tuple[list[Read], bool]:
    """Return the method and body of every whole request, and whether h11 has read everything without an error."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    server.receive_data(received)
    server.receive_data(b"")
    found: list[Read] = []
    method, body = b"", b""
    try:
        while True:
            event = server.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, body))
                if server.our_state is h11.SEND_RESPONSE:
                    server.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
                    server.send(h11.EndOfMessage())
                if server.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    server.start_next_cycle()
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
                return found, True
    except h11.RemoteProtocolError:
        return found, False


async def check(gateway: RunningGateway, upstream: RawUpstream, request: bytes) -> None:
    client = await gateway.connect()
    try:
        await client.send_all([request])
        # A request that is not whole gets no response: then the client leaves.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await client.read_to_end()
        response = bytes(client.received)
    finally:
        await client.close()
    assert b"HTTP/1.1 500" not in response
    seen: list[Read] = []
    for wire in upstream.wires:
        found, is_clean = read_with_h11(bytes(wire.received))
        # A request that was cut is not whole. One that is, and what follows it, is well-formed.
        assert is_clean or not found
        seen += found
    expected, is_clean = read_with_h11(request)
    if is_clean:
        # In order; the gateway responds to some itself. What h11 refuses, several spaces say, it may accept.
        rest = iter(expected)
        assert all(read in rest for read in seen), (expected, seen)


def test_upstream_receives_the_requests_that_another_parser_reads_too() -> None:
    explore_gateway(responding(OK), lambda upstream: forward_config(upstream.url), requests(), check, examples=150)
