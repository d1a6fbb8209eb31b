"""A body that was cut never looks complete, and a failed source keeps its failure. In both directions and framings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    run_gateway,
    split_response,
)
from tests.ports import free_port

BLOCK = b"x" * 65536


async def read_without_response(wire: Wire) -> None:
    """Read until the peer closes and send no response."""
    await wire.read_to_end()


def is_whole_request(received: bytes) -> bool:
    """Return whether an upstream could read these bytes as a complete request."""
    head, end_of_head, body = received.partition(b"\r\n\r\n")
    if not end_of_head:
        return False
    if b"transfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return len(body) >= length


LENGTH_HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "action",
    [
        *({"forward": {"upstream": "up", **keys}} for keys in ({}, {"multipart": "strict"}, {"body": "raw"})),
        {"split": {"upstream": "up"}},
    ],
    ids=["inspect", "strict", "raw", "split"],
)
async def test_large_form_to_a_dead_upstream_is_502_and_leaves_nothing(action: dict[str, Any]) -> None:
    """asyncio logged that the exception of a task was never retrieved, for 10 of 10 such forms."""
    body = form(('name="f"; filename="a"', BLOCK * 64))
    keys = {"upstreams": {"up": {"endpoints": [f"http://127.0.0.1:{free_port()}"]}}}
    async with run_gateway({**keys, "routes": [{"name": "r", "match": {"prefix": "/"}, **action}]}) as gateway:
        for number in range(1, 11):
            response = await gateway.request(post(body))
            line = await gateway.wait_log_line(number)
            assert (line["outcome"], line["blame"]) == ("upstream_failed", "upstream")
            assert split_response(response)[0] == line["status"]


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_upload_of_a_client_that_disconnects_never_looks_complete(framing: str, how: str) -> None:
    async with RawUpstream(read_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        if framing == "length":
            await client.send(LENGTH_HEAD, BLOCK)
        else:
            await client.send(CHUNKED_HEAD, b"10000\r\n" + BLOCK + b"\r\n")
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        if how == "fin":
            await client.close()
        else:
            client.reset()
        await upstream.wait_finished()
        line = await gateway.wait_log_line()
        assert not is_whole_request(upstream.received)
        assert (line["outcome"], line["blame"], line["upload"]) == ("client_left", "client", "client_left")
        assert line["status"] == 499


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_upstream_that_disconnects_during_an_upload_is_502_and_blamed(framing: str, how: str) -> None:
    async def close_early(wire: Wire) -> None:
        await wire.read_head()
        await wire.read_some()
        if how == "fin":
            await wire.close()
        else:
            wire.reset()

    async with RawUpstream(close_early) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        pieces = [BLOCK] * 160 if framing == "length" else [b"10000\r\n" + BLOCK + b"\r\n"] * 160
        head = LENGTH_HEAD.replace(b"1000000", b"10485760") if framing == "length" else CHUNKED_HEAD
        sending = asyncio.create_task(client.send_all([head, *pieces]))
        response = await client.read_to_end()
        await sending
        await client.close()
        line = await gateway.wait_log_line()
        assert split_response(response)[0] == 502
        assert (line["outcome"], line["blame"]) == ("upstream_failed", "upstream")


INCOMPLETE_RESPONSES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + BLOCK,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + BLOCK + b"\r\n",
    "close": b"HTTP/1.1 200 OK\r\n\r\n" + BLOCK,
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    ("framing", "how"),
    [("length", "fin"), ("length", "reset"), ("chunked", "fin"), ("chunked", "reset"), ("close", "reset")],
)
async def test_download_from_an_upstream_that_disconnects_never_looks_complete(
    framing: str, how: str, version: str
) -> None:
    got = asyncio.Event()

    async def close_early(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(INCOMPLETE_RESPONSES[framing])
        await got.wait()
        if how == "fin":
            await wire.close()
        else:
            wire.reset()

    async with RawUpstream(close_early) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(f"GET / HTTP/{version}\r\nHost: gw\r\n\r\n".encode())
        await client.read_head()
        await client.read_exactly(1000)
        got.set()
        rest = await client.read_to_end()
        await client.close()
        head = bytes(client.received).partition(b"\r\n\r\n")[0].lower()
        if b"transfer-encoding" in head:
            assert not rest.endswith(b"0\r\n\r\n")
        elif b"content-length" in head:
            assert len(rest) + 1000 < 1000000
        else:
            # Only the close of the connection ends this body, so the gateway must reset it.
            assert client.was_reset
        assert bytes(client.received).count(b"HTTP/1.1 ") == 1
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["blame"], line["download"]) == ("upstream_failed", "upstream", "upstream_failed")
        assert line["status"] == 200


async def test_head_of_a_response_without_any_of_its_body_reaches_the_client() -> None:
    """It was held back for the first bytes of the body, and dropped with the cut: the client received nothing."""

    async def respond(wire: Wire) -> None:
        await read_request(wire)
        await wire.send(OK)
        await read_request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await wire.close()

    async with RawUpstream(respond) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        get = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
        assert split_response(await gateway.request(get))[0] == 200
        status, headers, body = split_response(await gateway.request(get))
        assert (status, headers["content-length"], body) == (200, "5", b"")


async def test_close_delimited_response_that_ends_with_fin_is_complete() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await wire.close()

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert response.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        assert (await gateway.wait_log_line())["outcome"] == "complete"


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_client_that_disconnects_during_a_download_closes_the_upstream_connection(how: str) -> None:
    ended = asyncio.Event()

    async def endless(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        await wire.send_all(BLOCK for _ in range(15000))
        ended.set()

    async with RawUpstream(endless) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await client.read_head()
        if how == "fin":
            await client.close()
        else:
            client.reset()
        await asyncio.wait_for(ended.wait(), TIMEOUT_SECONDS)
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["blame"], line["download"]) == ("client_left", "client", "client_left")


async def test_client_that_disconnects_from_an_idle_stream_closes_the_upstream_connection_at_once() -> None:
    async def idle(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert await wire.read_to_end() == b""

    async with RawUpstream(idle) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await client.read_until(b"data: 1\n\n")
        await client.close()
        await upstream.wait_finished()
        assert (await gateway.wait_log_line())["outcome"] == "client_left"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_body_that_exceeds_the_limit_is_413_and_never_looks_complete_to_the_upstream(framing: str) -> None:
    config = forward_config("http://127.0.0.1:9", limits={"max_part": "100KiB"})
    body = form(('name="f"; filename="a.bin"', b"y" * 200_000))
    async with RawUpstream(read_without_response) as upstream:
        config["upstreams"]["up"]["endpoints"] = [upstream.url]
        async with run_gateway(config) as gateway:
            request = post(body)
            if framing == "chunked":
                head = request.partition(b"Content-Length")[0]
                pieces = [body[at : at + 30_000] for at in range(0, len(body), 30_000)]
                request = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*pieces)
            pieces = [request[at : at + 20_000] for at in range(0, len(request), 20_000)]
            response = await gateway.request(*pieces)
            await upstream.wait_finished()
            document = problem_of(response)
            assert document["status"] == 413
            assert document["limit"] == 102400
            assert document["config_key"] == "routes.r.limits.max_part"
            assert not is_whole_request(upstream.received)
            line = await gateway.wait_log_line()
            assert (line["outcome"], line["blame"], line["upload"]) == ("limit", "client", "limit")


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_declared_length_over_the_limit_is_refused_before_the_upstream_is_connected() -> None:
    async with RawUpstream(read_without_response) as upstream:
        async with run_gateway(forward_config(upstream.url, limits={"max_body": 100})) as gateway:
            response = await gateway.request(post(b"z" * 101, content_type="text/plain"))
            document = problem_of(response)
            assert document["status"] == 413
            assert (document["limit"], document["received"]) == (100, 101)
            assert not upstream.wires


async def test_upload_that_fails_after_the_response_began_cuts_both_connections() -> None:
    """The upstream responds while it reads the body. When the body turns out malformed, both connections are cut."""

    async def eager(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nworking")
        await wire.read_to_end()

    async with RawUpstream(eager) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        body = form(('name="f"; filename="a"', b"data"))[:-6]
        head, _, rest = post(body).partition(b"\r\n\r\n")
        client = await gateway.connect()
        await client.send(head + b"\r\n\r\n")
        await client.read_until(b"working")
        await client.send(rest)
        end = await client.read_to_end()
        await client.close()
        await upstream.wait_finished()
        assert b"0\r\n\r\n" not in end
        assert not is_whole_request(upstream.received)
        line = await gateway.wait_log_line()
        assert (line["code"], line["blame"], line["upload"]) == ("bad_multipart", "client", "client_bad")


async def test_malformed_chunk_is_400_and_the_upstream_receives_no_final_chunk() -> None:
    """With aiohttp 3.14.5 a read of such a body never ends."""
    async with RawUpstream(read_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(CHUNKED_HEAD, b"5\r\nhello\r\n")
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        await client.send(b"ZZZ\r\n")
        response = await client.read_to_end()
        await client.close()
        await upstream.wait_finished()
        assert problem_of(response)["code"] == "bad_framing"
        assert not is_whole_request(upstream.received)


async def test_malformed_chunk_of_the_upstream_cuts_the_response() -> None:
    """With aiohttp 3.14.5 a read of such a body does not end until the upstream closes the connection."""

    arrived = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await arrived.wait()
        await wire.send(b"zz\r\n")
        await wire.read_to_end()

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await client.read_until(b"hello")
        arrived.set()
        assert not (await client.read_to_end()).endswith(b"0\r\n\r\n")
        await client.close()
        assert (await gateway.wait_log_line())["outcome"] == "upstream_failed"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_complete_upload_arrives_complete(framing: str) -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        body = bytes(range(256)) * 4096
        if framing == "length":
            request = (
                b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        else:
            head = CHUNKED_HEAD.replace(b"gw\r\n", b"gw\r\nConnection: close\r\n")
            request = head + chunked(body[:7], body[7:100_000], body[100_000:])
        response = await gateway.request(request)
        assert response.endswith(b"ok")
        assert seen == [body]
        assert (await gateway.wait_log_line())["upload"] == "complete"
