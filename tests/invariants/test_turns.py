"""No input stops the loop: what is broken is refused at once, and what is tiny arrives whole, in bounded steps.

How much work a step may do is asserted where the steps are: tests/unit/test_chunked.py, tests/multipart/test_reader.py,
tests/aiohttp_seam, tests/transfer/test_turns.py. How long others wait is measured by tests/bench/hostile.py.
"""

from __future__ import annotations

import asyncio

import pytest

from gateway.aiohttp_seam import ServerConnection
from gateway.transfer.turns import Turns
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
)

HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("line", [b"junk", b"-1", b"5 garbage", b"0;\r", b"1\r\nxx", b"0\r\nContent-Length: 3"])
async def test_broken_chunk_is_refused_before_its_line_ends(line: bytes) -> None:
    """The response came only when the idle timeout ran out."""

    async def script(wire: Wire) -> None:
        await wire.read_to_end()

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(HEAD + CHUNKED + line)
        assert problem_of(await client.read_to_end())["code"] == "bad_framing"
        await client.close()


async def test_chunked_requests_are_pipelined_and_their_trailers_stay_with_them(every_lane: str) -> None:
    """The second of three requests closed the connection, and a trailer became a header of the next request."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await read_request(wire))
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        first = HEAD + b"Content-Length: 3\r\n\r\nabc"
        second = HEAD + CHUNKED + chunked(b"defg")[:-2] + b"X-Evil: 1\r\n\r\n"
        received = await gateway.request(first + second + first + second + LAST)
        assert received.count(b"HTTP/1.1 200") == 5
        assert [body for _, body in seen] == [b"abc", b"defg", b"abc", b"defg", b""]
        assert all(b"evil" not in head.lower() for head, _ in seen)


@pytest.mark.parametrize("sizes", [[1], [1, 2], [15, 16, 300]])
async def test_upload_and_response_in_tiny_chunks_arrive_whole(sizes: list[int], every_lane: str) -> None:
    data = [bytes([index % 256]) * sizes[index % len(sizes)] for index in range(30_000)]
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(b"HTTP/1.1 200 OK\r\n" + CHUNKED + chunked(*data))

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(HEAD + CHUNKED + chunked(*data))
        # A response is framed like a request.
        head, body = await read_request(client)
        assert head.startswith(b"HTTP/1.1 200")
        assert (seen, body) == ([b"".join(data)], b"".join(data))
        await client.close()


@pytest.mark.parametrize("action", ["forward", "opaque", "strict", "raw"])
async def test_form_of_look_alikes_arrives_whole(action: str, every_lane: str) -> None:
    file = b"y" + b"--x" * 200_000
    body = form(('name="f"; filename="a"', file), boundary=b"x")
    keys = {"forward": {}, "opaque": {"multipart": "opaque"}, "strict": {"multipart": "strict"}, "raw": {"body": "raw"}}
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, forward=keys[action])) as gateway:
            assert (
                split_response(await gateway.request(post(body, content_type="multipart/form-data; boundary=x")))[0]
                == 200
            )
            assert file in seen[0]


async def test_endless_interim_responses_are_a_bad_gateway() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send_all(b"HTTP/1.1 102 Processing\r\n\r\n" * 100 for _ in range(10_000))

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        problem = problem_of(await gateway.request(LAST))
        assert (problem["status"], problem["code"]) == (502, "bad_response")
        assert "1xx" in problem["detail"]


async def test_a_few_interim_responses_are_dropped() -> None:
    async with RawUpstream(responding(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 50 + OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            assert (await gateway.request(LAST)).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_without_bodies_are_all_responded_to() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            received = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n" * 300 + LAST)
            assert received.count(b"HTTP/1.1 200") == 301


async def test_pipelined_requests_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty clients had a request each begun in every iteration of the loop, which held it for 15 ms."""
    waits = 0
    wait = Turns.wait

    async def count(self: Turns) -> None:
        nonlocal waits
        waits += 1
        await wait(self)

    monkeypatch.setattr(Turns, "has_time", lambda self: False)
    monkeypatch.setattr(Turns, "wait", count)
    # No upstream: nothing else of these exchanges waits for a turn.
    async with run_gateway(forward_config("http://127.0.0.1:9", match={"prefix": "/other"})) as gateway:
        received = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n" * 100 + LAST)
    assert received.count(b"HTTP/1.1 404") == 101
    assert waits > 50


async def test_body_that_is_dropped_after_a_refusal_is_received_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it takes turns: fifty such clients held each iteration of the loop for 15 ms."""
    sizes: list[int] = []
    receive = ServerConnection.data_received

    def record(self: ServerConnection, data: bytes) -> None:
        sizes.append(len(data))
        receive(self, data)

    monkeypatch.setattr(ServerConnection, "data_received", record)
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, limits={"max_body": "1MiB"})
        async with run_gateway(config) as gateway:
            client = await gateway.connect()
            await client.send(HEAD + CHUNKED)
            reading = asyncio.create_task(client.read_head())
            while not reading.done():
                await client.send(b"10000\r\n" + bytes(2**16) + b"\r\n")
            assert b" 413 " in await reading
            refused_after = len(sizes)
            for _ in range(64):
                await client.send(b"10000\r\n" + bytes(2**16) + b"\r\n")
            await client.send(b"0\r\n\r\n")
            await client.read_to_end()
            await client.close()
    dropped = sizes[refused_after:]
    # All but what was on its way.
    assert sum(dropped) > 2**21
    assert sum(size for size in dropped if size > 2**15) <= 2**18
