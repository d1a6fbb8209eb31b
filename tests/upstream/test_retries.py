"""Requests that are sent a second time: which ones, when, and never a POST."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import pytest

from gateway.config.upstream import UpstreamTimeouts
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.http.framing import Framing
from gateway.observe.stats import Direction, UpstreamStats
from gateway.threads import Threads
from gateway.transfer import Timers
from gateway.upstream import RequestHead, Resolver, UpstreamClient, UpstreamSink, Whose
from gateway.upstream.client import Unreplaced
from gateway.upstream.retries import RetryBudget
from tests.ops.test_ops import fetch
from tests.peers import (
    OK,
    RawUpstream,
    RunningGateway,
    Script,
    Wire,
    forward_config,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
NO_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def request_of(method: str, body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{length}\r\n".encode() + body


def chunked_request(method: str, body: bytes) -> bytes:
    head = f"{method} / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def retries_of(gateway: RunningGateway) -> dict[str, int]:
    return {reason: count for reason, count in gateway.stats.upstreams["up"].retries.items() if count}


class ClosingUpstream(RawUpstream):
    """Responds to the first request of each connection, and ends the connection at the second."""

    def __init__(self, end: Callable[[Wire], object]) -> None:
        super().__init__(self._respond_once)
        self._end = end
        #: Every request received whole.
        self.requests: list[tuple[bytes, bytes]] = []

    async def _respond_once(self, wire: Wire) -> None:
        self.requests.append(await read_request(wire))
        await wire.send(NO_BODY)
        self.requests.append(await read_request(wire))
        if (ending := self._end(wire)) is not None:
            assert asyncio.iscoroutine(ending)
            await ending


def test_budget_adds_a_share_for_each_request_and_some_in_any_case() -> None:
    now = 100.0
    budget = RetryBudget(clock=lambda: now)
    assert not budget.withdraw()
    budget.configure(0.2)
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(16):
        budget.request_count += 1
    assert [budget.withdraw() for _ in range(4)] == [True] * 3 + [False]
    now += 0.5
    assert [budget.withdraw() for _ in range(6)] == [True] * 5 + [False]
    now += 1000
    for _ in range(1000):
        budget.request_count += 1
    assert [budget.withdraw() for _ in range(101)] == [True] * 100 + [False]


def test_workers_divide_a_budget_and_each_sends_the_first_request_again() -> None:
    now = 100.0
    budgets = [RetryBudget(clock=lambda: now) for _ in range(5)]
    for budget in budgets:
        budget.configure(0.2, 5)
    assert [sum(budget.withdraw() for _ in range(5)) for budget in budgets] == [2] * 5
    now += 1000
    assert [sum(budget.withdraw() for _ in range(50)) for budget in budgets] == [20] * 5
    for budget in budgets[:2]:
        # A reload: of 50 workers now.
        budget.configure(0.2, 50)
        assert [budget.withdraw() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("end", [Wire.close, Wire.reset], ids=["close", "reset"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        request_of("GET"),
        request_of("HEAD"),
        request_of("OPTIONS"),
        request_of("DELETE"),
        request_of("PUT"),
        request_of("PUT", b"small"),
        chunked_request("PUT", b"small"),
        request_of("QUERY", b"select"),
        request_of("PUT", b"x" * 65536),
    ],
    ids=["GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PUT-body", "PUT-chunked", "QUERY", "PUT-64KiB"],
)
async def test_repeatable_request_on_a_stale_connection_is_sent_again(
    end: Callable[[Wire], object], request_bytes: bytes
) -> None:
    """It was a 502 although the only endpoint was healthy."""
    async with ClosingUpstream(end) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        await gateway.request(GET)
        assert split_response(await gateway.request(request_bytes))[0] == 200
        assert len(upstream.wires) == 2
        _, stale, again = upstream.requests
        assert stale == again
        assert retries_of(gateway) == {"stale_connection": 1}
        await gateway.wait_log_line(2)
        # Its body was counted once.
        moved = gateway.stats.routes["r"].transfers[Direction.UPLOAD].bytes_moved
        assert moved == len(stale[1])
        assert gateway.log[1]["upload"] == ("complete" if stale[1] else None)


@pytest.mark.parametrize(
    "request_bytes",
    [
        request_of("POST"),
        request_of("POST", b"small"),
        chunked_request("POST", b"small"),
        request_of("PATCH", b"small"),
        request_of("PUT", b"x" * 65537),
        chunked_request("PUT", b"x" * 100_000),
    ],
    ids=["POST", "POST-body", "POST-chunked", "PATCH", "PUT-large", "PUT-large-chunked"],
)
async def test_request_that_must_not_be_sent_twice_is_502_on_a_stale_connection(request_bytes: bytes) -> None:
    async with ClosingUpstream(Wire.close) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        await gateway.request(GET)
        assert problem_of(await gateway.request(request_bytes))["code"] == "upstream_closed"
        assert len(upstream.requests) == 2
        assert not retries_of(gateway)


@pytest.mark.parametrize("beginning", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_request_is_not_sent_again_after_a_byte_of_a_response(beginning: bytes) -> None:
    async def respond_partly(wire: Wire) -> None:
        await wire.send(beginning)
        await wire.close()

    async with ClosingUpstream(respond_partly) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        await gateway.request(GET)
        assert split_response(await gateway.request(GET))[0] == 502
        assert len(upstream.requests) == 2
        assert not retries_of(gateway)


async def close_without_response(wire: Wire) -> None:
    await read_request(wire)
    await wire.close()


@pytest.mark.new_connection(reason="a kept one that closes is replaced first")
async def test_request_goes_to_another_endpoint_when_one_closes_without_a_response() -> None:
    async with RawUpstream(close_without_response) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(forward_config([bad.url, good.url])) as gateway:
            assert (await gateway.request(request_of("PUT", b"small"))).endswith(b"ok")
            assert bad.received.endswith(b"small")
            assert good.received.endswith(b"small")
            assert retries_of(gateway) == {"upstream_closed": 1}
            line = await gateway.wait_log_line()
            assert line["endpoint"] == good.url


@pytest.mark.new_connection(reason="a kept one that closes is replaced first")
@pytest.mark.parametrize(
    ("request_bytes", "retries"),
    [(request_of("POST", b"small"), {}), (GET, {"attempts": 0}), (GET, {"budget": "0%"})],
    ids=["POST", "attempts", "budget"],
)
async def test_request_stays_with_an_endpoint_that_closes_without_a_response(
    request_bytes: bytes, retries: dict[str, Any]
) -> None:
    async with RawUpstream(close_without_response) as bad, RawUpstream(responding(OK)) as good:
        config = forward_config([bad.url, good.url], upstream_keys={"retries": retries})
        async with run_gateway(config) as gateway:
            assert problem_of(await gateway.request(request_bytes))["code"] == "upstream_closed"
            assert not good.wires


@pytest.mark.new_connection(reason="a kept one that closes is replaced first")
async def test_attempts_and_budget_limit_how_often_a_request_is_sent() -> None:
    async with (
        RawUpstream(close_without_response) as one,
        RawUpstream(close_without_response) as two,
        RawUpstream(close_without_response) as three,
    ):
        endpoints = [one.url, two.url, three.url]
        config = forward_config(endpoints, upstream_keys={"retries": {"attempts": 1}})
        async with run_gateway(config) as gateway:
            gateway.gateway._resources.upstreams["up"].budget = budget = RetryBudget(clock=lambda: 0)
            budget.configure(0.2)
            await gateway.request(GET)
            assert sum(len(upstream.wires) for upstream in (one, two, three)) == 2
            for _ in range(40):
                await gateway.request(GET)
            # 41 requests add 8.2 tokens to the ten at the start.
            assert retries_of(gateway) == {"upstream_closed": 18}


async def test_reasons_have_series_from_the_start() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
    for reason in ("connect_refused", "upstream_closed", "stale_connection"):
        assert f'gateway_upstream_retries_total{{reason="{reason}",upstream="up"}} 0' in text


class OneChunk:
    """A body of one chunk, which is here when the request starts or later."""

    def __init__(self, data: bytes, *, is_late: bool) -> None:
        self.data = data
        self._is_late = is_late

    async def send_to(self, sink: UpstreamSink) -> None:
        for _ in range(5 if self._is_late else 0):
            await asyncio.sleep(0)
        if self.data:
            await sink.write(self.data)


BODIES = {
    "small": OneChunk(b"small", is_late=False),
    "late": OneChunk(b"small", is_late=True),
    "large": OneChunk(b"x" * 20_000, is_late=False),
    "empty": OneChunk(b"", is_late=False),
    "empty-late": OneChunk(b"", is_late=True),
}
UNREQUESTED = b"HTTP/1.1 201 Smuggled\r\nContent-Length: 0\r\n\r\n"


class StaleConnection:
    """A client with one kept connection, and the peer of that connection."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        stats = UpstreamStats("up")
        self._timers = Timers()
        self._endpoint = Endpoint("http", "127.0.0.1", listener.getsockname()[1])
        whose = Whose("upstream 'up'", "upstreams.up.endpoints", "upstreams.up.timeouts")
        resolver = Resolver(Threads("name", 1))
        self._client = UpstreamClient(UpstreamTimeouts(), self._timers, whose, resolver, stats=stats)
        self.retries = stats.retries

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        get = RequestHead("GET", "/", None, b"", None)
        sending = asyncio.create_task(self._client.send(self._endpoint, get))
        self.peer, _ = await loop.sock_accept(self.listener)
        self.peer.setblocking(False)
        await loop.sock_recv(self.peer, 1000)
        await loop.sock_sendall(self.peer, NO_BODY)
        await (await sending).close()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.peer.close()
        await self._client.close()
        self._timers.close()

    async def post(self, body: OneChunk, framing: Framing, on_connected: Callable[[], None]) -> int:
        head = RequestHead("POST", "/", None, b"", framing)
        async with await self._client.send(self._endpoint, head, body, on_connected=on_connected) as response:
            return response.status


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("news", ["close", "bytes"])
async def test_request_is_sent_on_another_connection_if_none_of_it_was_sent(
    name: str, news: str, *, is_chunked: bool
) -> None:
    """The kept connection was checked when it was chosen; the head of a request with a body is sent one turn later.

    An unrequested response that came in between was taken for the response to this request.
    """
    body, loop = BODIES[name], asyncio.get_running_loop()
    calls = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with StaleConnection(listener) as stale:

            def on_connected() -> None:
                nonlocal calls
                calls += 1
                if news == "bytes":
                    stale.peer.send(UNREQUESTED)
                else:
                    stale.peer.shutdown(socket.SHUT_WR)

            framing = Framing(None if is_chunked else len(body.data))
            sending = asyncio.create_task(stale.post(body, framing, on_connected))
            peer, _ = await loop.sock_accept(listener)
            with peer:
                received = b""
                end = b"\r\n0\r\n\r\n" if is_chunked else b"\r\n\r\n" + body.data
                while not received.endswith(end):
                    received += await loop.sock_recv(peer, 2**16)
                assert received.count(b"POST / HTTP/1.1") == 1
                await loop.sock_sendall(peer, NO_BODY)
                assert await sending == 200
                with contextlib.suppress(ConnectionError):
                    assert await loop.sock_recv(stale.peer, 1000) == b""
            assert {reason: count for reason, count in stale.retries.items() if count} == {"stale_connection": 1}
            assert calls == 1


class FailingBody(OneChunk):
    """A body that breaks off before its first byte."""

    async def send_to(self, sink: UpstreamSink) -> None:
        await asyncio.sleep(0)
        raise Fault(FaultKind.CLIENT_LEFT, "gone")


@pytest.mark.parametrize("framing", [Framing(5), Framing(None)], ids=["length", "chunked"])
async def test_request_whose_body_breaks_off_is_not_sent_on_another_connection(framing: Framing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with StaleConnection(listener) as stale:
            body = FailingBody(b"", is_late=True)
            with pytest.raises(Fault, match="gone") as caught:
                await stale.post(body, framing, lambda: stale.peer.shutdown(socket.SHUT_WR))
            assert caught.value.kind is FaultKind.CLIENT_LEFT
            with pytest.raises(BlockingIOError):
                listener.accept()


async def test_request_whose_body_was_begun_goes_to_no_other_endpoint() -> None:
    """None of it was sent, but a part of its body was taken from the client."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    async with StaleConnection(listener) as stale:

        def on_connected() -> None:
            stale.peer.send(UNREQUESTED)
            listener.close()

        with pytest.raises(Unreplaced) as caught:
            await stale.post(BODIES["small"], Framing(5), on_connected)
        assert not caught.value.is_repeatable
        # It was upstream_closed.
        assert caught.value.kind is FaultKind.CONNECT_REFUSED


@pytest.mark.parametrize("request_bytes", [request_of("PUT", b"small"), chunked_request("PUT", b"small")])
async def test_whole_body_goes_to_another_endpoint_when_one_closes_its_connections_and_its_port(
    request_bytes: bytes,
) -> None:
    """The other endpoint got the head and no body: that had been sent on the first endpoint's connection."""
    received: list[bytes] = []

    async def respond(wire: Wire) -> None:
        while True:
            received.append((await read_request(wire))[1])
            await wire.send(NO_BODY)

    async def stop(wire: Wire) -> None:
        first._server.close()
        await wire.close()

    async with RawUpstream(respond) as other, ClosingUpstream(stop) as first:
        async with run_gateway(forward_config([first.url, other.url])) as gateway:
            assert [split_response(await gateway.request(GET))[0] for _ in range(2)] == [200, 200]
            assert split_response(await gateway.request(request_bytes))[0] == 200
            assert received == [b"", b"small"]
            assert retries_of(gateway) == {"stale_connection": 1, "connect_refused": 1}


def racing(requests: Counter[bytes]) -> Script:
    """Return a script that counts requests by target, and ends connections while the next request may be on its way."""

    async def script(wire: Wire) -> None:
        while True:
            head, _ = await read_request(wire)
            requests[head.split()[1]] += 1
            choice = random.random()
            if choice < 0.05 and len(wire.received) > len(head):
                wire.reset()
                return
            await wire.send(NO_BODY)
            if choice < 0.3:
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
                await wire.close()
                return

    return script


@pytest.mark.slow
async def test_no_post_is_sent_twice_and_no_get_fails_while_connections_close() -> None:
    requests: Counter[bytes] = Counter()
    statuses: dict[str, Counter[int]] = {"GET": Counter(), "POST": Counter()}

    async def send(gateway: RunningGateway, worker: int, method: str) -> None:
        client = await gateway.connect()
        for number in range(500):
            target = f"/{method}/{worker}/{number}"
            body = b"small" if method == "POST" else b""
            head = f"{method} {target} HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            await client.send(head + body)
            status, headers, _ = split_response(await client.read_head())
            await client.read_exactly(int(headers["content-length"]))
            statuses[method][status] += 1
            if headers.get("connection") == "close":
                await client.close()
                client = await gateway.connect()
        await client.close()

    async with RawUpstream(racing(requests)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with asyncio.TaskGroup() as group:
            for worker in range(4):
                group.create_task(send(gateway, worker, "GET"))
                group.create_task(send(gateway, worker, "POST"))
        assert set(statuses["GET"]) == {200}
        assert statuses["POST"][200] + statuses["POST"][502] == 2000
        posts = {target: count for target, count in requests.items() if target.startswith(b"/POST/")}
        assert set(posts.values()) == {1}
        assert retries_of(gateway)["stale_connection"] > 10
