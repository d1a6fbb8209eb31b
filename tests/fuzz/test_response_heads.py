"""Response heads: what is passed on, h11 and aiohttp's parser read like we do."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import strategies as st

from gateway.errors import Fault
from gateway.http.headers import ReceivedHeaders
from gateway.http.response_head import (
    MAX_RESPONSE_HEADERS,
    MAX_RESPONSE_LINE_BYTES,
    check_response_framing,
    check_response_head,
    explain_bad_head,
    is_interim,
)
from tests.fuzz.explore import explore, explore_gateway
from tests.peers import RawUpstream, RunningGateway, Wire, forward_config, read_request

pytestmark = pytest.mark.slow

LINES = st.one_of(
    st.sampled_from(
        [
            b"Content-Length: 2",
            b"Content-Length:2",
            b"Content-Length : 2",
            b"content-length: 02",
            b"Content-Length: 2, 2",
            b"Content-Length: +2",
            b"Content-Length: 3",
            b"Content-Length:",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: Chunked ",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding\t: chunked",
            b"Transfer-Encoding: \x0bchunked",
            b"Connection: close",
            b"Connection: content-length, x-a",
            b"Connection: Upgrade",
            b"Upgrade: h2c",
            b"X-A: b",
            b" folded",
            b"\tfolded: x",
            b"X-A",
            b": b",
            b"X A: b",
            b"X-A: \xff\xe4",
            b"X-A: a\rb",
            b"X-A: a\0b",
            b"Content-Encoding: gzip",
            b"Set-Cookie: a=b",
        ]
    ),
    st.binary(max_size=12),
)
STATUS_LINES = st.one_of(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 204 No Content",
            b"HTTP/1.1 304 Not Modified",
            b"HTTP/1.1 100 Continue",
            b"HTTP/1.1 103 Early",
            b"HTTP/1.1 101 Switch",
            b"HTTP/1.1 099 X",
            b"HTTP/1.1 600 X",
            b"HTTP/1.1 200",
            b"HTTP/1.1  200 OK",
            b"HTTP/2.0 200 OK",
            b"RTSP/1.0 200 OK",
            b"",
        ]
    ),
    st.builds(b"HTTP/1.1 %d %s".__mod__, st.tuples(st.integers(90, 620), st.binary(max_size=4))),
)
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b""])
BODIES = st.sampled_from([b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"okx", b"HTTP/1.1 200 OK\r\n\r\n"])


@st.composite
def responses(draw: Any) -> bytes:
    """Return bytes that an upstream might send: heads with odd lines, perhaps with a few bytes changed."""
    text = bytearray()
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        for line in [draw(STATUS_LINES), *draw(st.lists(LINES, max_size=4)), b""]:
            text += line + draw(ENDS)
    text += draw(BODIES)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2)):
        if text:
            text[at % len(text)] = value
    return bytes(text)


def check_head(received: bytes) -> None:
    try:
        end = check_response_head(received)
    except Fault:
        return
    lines = received[: end - 4].split(b"\r\n")
    pairs = [line.partition(b":") for line in lines[1:]]
    headers = [(name, value.strip(b" \t")) for name, _, value in pairs]
    status = int(lines[0][9:12])
    try:
        check_response_framing((1, lines[0][7] - 48), status, ReceivedHeaders(headers))
    except Fault:
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    client.receive_data(received[:end])
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse if is_interim(status) else h11.Response)
    assert event.status_code == status
    # h11 writes the coding in lower case.
    assert [(name, value.lower()) for name, value in event.headers] == [(n.lower(), v.lower()) for n, v in headers]

    asyncio.run(check_with_aiohttp(received[:end], status, headers))


async def check_with_aiohttp(head: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    loop = asyncio.get_running_loop()
    parser = HttpResponseParser(
        BaseProtocol(loop),
        loop,
        2**16,
        read_until_eof=True,
        max_headers=MAX_RESPONSE_HEADERS,
        max_line_size=MAX_RESPONSE_LINE_BYTES,
        max_field_size=MAX_RESPONSE_LINE_BYTES,
    )
    try:
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        # Stricter: nothing of it is passed on.
        return
    assert [(message.code, list(message.raw_headers)) for message, _ in messages] == [(status, headers)]


def test_accepted_response_heads_have_one_reading() -> None:
    explore(responses(), check_head, examples=300)


def test_every_refused_head_is_explained() -> None:
    def check(received: bytes) -> None:
        assert "upstream" in explain_bad_head(received).detail

    explore(responses(), check, examples=300)


def test_client_reads_one_well_formed_response_whatever_the_upstream_sends() -> None:
    sent = [b""]

    async def respond(wire: Wire) -> None:
        await read_request(wire)
        await wire.send_all([sent[0]])
        wire.writer.write_eof()
        await wire.read_to_end()

    async def check(gateway: RunningGateway, upstream: RawUpstream, response: bytes) -> None:
        sent[0] = response
        received = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(received)
        event = client.next_event()
        assert isinstance(event, h11.Response)
        names = [name.lower() for name, _ in event.headers.raw_items()]
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert event.status_code == 502 or b" %d" % event.status_code in response

    explore_gateway(respond, lambda upstream: forward_config(upstream.url), responses(), check, examples=100)
