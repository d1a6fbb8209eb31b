"""What the express lane hands over to the normal path, and that everything ends there as ever."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
from typing import Any

import pytest

from gateway.config import parse_config
from gateway.express import HandOver
from gateway.observe.stats import Direction
from tests.express.scene import GET, POST, PUT, Scene, read_ok, run_scene, serve_ok
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    form,
    forward_config,
    problem_of,
    read_request,
    split_response,
    wait_until,
)
from tests.scenes import assert_adds_up

FORM = (
    b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=XBOUNDARYX\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
FORM_BODY = b'--XBOUNDARYX\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--XBOUNDARYX--\r\n'
#: Handed over after this time: an upstream that is held is slow.
SLOW_SECONDS = 0.05
REQUESTS = pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])


class Held:
    """An upstream that responds when it is told to."""

    def __init__(self, response: bytes = OK) -> None:
        self._response = response
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def __call__(self, wire: Wire) -> None:
        await self._released.wait()
        await wire.send(self._response)


async def never(wire: Wire) -> None:
    """Wait until the gateway ends the connection."""
    await wire.read_to_end()


def pieces(*data: bytes) -> Any:
    """Return what sends pieces as segments of their own."""

    async def serve(wire: Wire) -> None:
        for piece in data:
            await wire.send(piece)
            # Let the gateway receive it.
            await asyncio.sleep(0.002)  # no event: nothing shows that the gateway has received a part of a body

    return serve


@REQUESTS
async def test_warmed_connection_takes_the_express_lane_and_its_legs_add_up(request_bytes: bytes) -> None:
    async with run_scene() as scene:
        downloads = scene.gateway.stats.routes["r"].transfers[Direction.DOWNLOAD]
        before = downloads.lanes.get("express", 0)
        await scene.send(request_bytes, serve_ok)
        await read_ok(scene.client)
        line = await scene.last_line()
        assert line["download_lane"] == "express"
        assert line["upload_lane"] == ("express" if request_bytes is POST else None)
        assert line["outcome"] == line["download"] == "complete"
        assert_adds_up(line)
        assert not scene.lane.handed_over
        assert downloads.lanes["express"] == before + 1


@REQUESTS
async def test_nothing_of_an_exchange_is_left_to_the_garbage_collector(request_bytes: bytes) -> None:
    count = 20
    async with run_scene() as scene:
        gc.collect()
        gc.disable()
        try:
            for _ in range(count):
                await scene.client.send(request_bytes)
                await read_ok(scene.client)
            await scene.settle()
            # One reference cycle per exchange would be at least two objects each.
            assert gc.collect() < count
        finally:
            gc.enable()
        assert [line["download_lane"] for line in scene.gateway.log[1:]] == ["express"] * count


@REQUESTS
async def test_slow_response_is_handed_over_and_arrives(request_bytes: bytes) -> None:
    held = Held()
    async with run_scene(slow_seconds=SLOW_SECONDS) as scene:
        await scene.send(request_bytes, held)
        await scene.handed_over(HandOver.SLOW)
        rows = await scene.gateway.gateway.exchanges.live.rows()
        assert [row["waiting_on"] for row in rows] == ["upstream_response"]
        assert scene.taken == 1
        held.release()
        await read_ok(scene.client)
        line = await scene.last_line()
        assert line["outcome"] == "complete"
        assert line["wait_seconds"]["upstream_response"] > 0.03
        assert_adds_up(line)
        assert len(scene.requests) == 2
        assert sum(scene.gateway.stats.upstreams["up"].response_seconds.counts) == 2
        await scene.goes_on()


@REQUESTS
@pytest.mark.parametrize("begun", [b"", b"ab"], ids=["head", "part of the body"])
async def test_response_that_has_begun_and_is_slow_is_handed_over_and_arrives(
    request_bytes: bytes, begun: bytes
) -> None:
    released = asyncio.Event()

    async def begin(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + begun)
        await released.wait()
        await wire.send(b"abcd"[len(begun) :])

    async with run_scene(slow_seconds=SLOW_SECONDS) as scene:
        await scene.send(request_bytes, begin)
        assert (await scene.client.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")
        await scene.handed_over(HandOver.SLOW)
        released.set()
        assert await scene.client.read_exactly(4) == b"abcd"
        line = await scene.last_line()
        assert (line["outcome"], line["download_bytes"]) == ("complete", 4)
        assert_adds_up(line)
        assert len(scene.requests) == 2
        await scene.goes_on()


@REQUESTS
async def test_response_that_never_comes_is_a_response_timeout(request_bytes: bytes) -> None:
    async with run_scene(slow_seconds=SLOW_SECONDS, upstream_keys={"timeouts": {"response": "0.2s"}}) as scene:
        await scene.send(request_bytes, never)
        response = await scene.client.read_head()
        assert b" 504 " in response
        assert (await scene.last_line())["code"] == "response_timeout"
        assert len(scene.requests) == 2


@REQUESTS
@pytest.mark.parametrize("is_handed_over", [False, True], ids=["before", "after"])
async def test_client_that_leaves_ends_the_exchange_and_the_upstream_request(
    request_bytes: bytes, is_handed_over: bool
) -> None:
    async with run_scene(slow_seconds=SLOW_SECONDS, upstream_keys={"max_in_flight": 1}) as scene:
        await scene.send(request_bytes, never)
        if is_handed_over:
            await scene.handed_over(HandOver.SLOW)
        await scene.client.close()
        await scene.upstream.wait_finished()
        line = await scene.last_line()
        assert (line["outcome"], line["blame"]) == ("client_left", "client")
        assert_adds_up(line)
        assert len(scene.gateway.log) == 2
        await scene.reconnect()
        await scene.goes_on()


async def test_client_that_resets_while_its_response_comes_has_not_got_it() -> None:
    async def reset_client(wire: Wire) -> None:
        scene.client.reset()
        # The reset leaves in the next iteration of the loop.
        await asyncio.sleep(0)
        await wire.send(OK)

    async with run_scene() as scene:
        await scene.send(GET, reset_client)
        line = await scene.last_line()
        assert (line["outcome"], line["blame"]) == ("client_left", "client")
        assert_adds_up(line)
        await scene.reconnect()
        await scene.goes_on()


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("request_bytes", [GET, PUT], ids=["GET", "PUT"])
async def test_upstream_that_dies_gets_an_idempotent_request_again(request_bytes: bytes, is_reset: bool) -> None:
    async def die(wire: Wire) -> None:
        if is_reset:
            wire.reset()
        else:
            await wire.close()

    async with run_scene() as scene:
        await scene.send(request_bytes, die)
        await read_ok(scene.client)
        assert (await scene.last_line())["outcome"] == "complete"
        assert len(scene.requests) == 3
        first, second = scene.requests[1:]
        assert first == second
        assert scene.gateway.stats.upstreams["up"].retries["stale_connection"] == 1
        await scene.goes_on()


@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
async def test_upstream_that_dies_never_gets_a_post_again(is_reset: bool) -> None:
    async def die(wire: Wire) -> None:
        if is_reset:
            wire.reset()
        else:
            await wire.close()

    async with run_scene() as scene:
        await scene.send(POST, die)
        response = await scene.client.read_head()
        assert b" 502 " in response
        line = await scene.last_line()
        assert (line["code"], line["upload_bytes"]) == ("upstream_closed", 4)
        assert len(scene.requests) == 2
        assert not scene.gateway.stats.upstreams["up"].retries["stale_connection"]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n", OK], HandOver.INTERIM),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK], HandOver.INTERIM),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"a" * 200_000], HandOver.LONG),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"], HandOver.LONG),
    ],
    ids=["interim", "interim together", "long", "length unknown"],
)
async def test_response_that_is_not_small_and_whole_is_handed_over(response: list[bytes], reason: HandOver) -> None:
    async with run_scene() as scene:
        await scene.send(GET, pieces(*response))
        head = await scene.client.read_head()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        if b"Transfer-Encoding" in head:
            await scene.client.read_until(b"0\r\n\r\n")
        else:
            await scene.client.read_exactly(int(split_response(head)[1]["content-length"]))
        line = await scene.last_line()
        assert line["outcome"] == "complete"
        assert line["download_lane"] != "express"
        await scene.handed_over(reason)
        await scene.goes_on()


@pytest.mark.parametrize(
    "response",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 6\r\n\r\nab", b"cd", b"ef"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", b"abcdef"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab", b"cd", b"ef"],
    ],
    ids=["within the head", "after the head", "within the body"],
)
async def test_small_body_in_several_segments_is_awaited(response: list[bytes]) -> None:
    async with run_scene() as scene:
        await scene.send(GET, pieces(*response))
        await scene.client.read_head()
        assert await scene.client.read_exactly(6) == b"abcdef"
        line = await scene.last_line()
        assert line["download_lane"] == "express"
        assert line["download_bytes"] == 6


@REQUESTS
async def test_response_that_breaks_off_never_looks_complete(request_bytes: bytes) -> None:
    """The part that had come before was dropped on the express lane, and sent on the normal path."""

    async def break_off(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await wire.close()

    async with run_scene() as scene:
        await scene.send(request_bytes, break_off)
        received = await scene.client.read_to_end()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(b"\r\n\r\nabc")
        line = await scene.last_line()
        assert (line["outcome"], line["blame"]) == ("upstream_failed", "upstream")


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["before", "after"])
async def test_operator_cancels_an_exchange(is_handed_over: bool) -> None:
    async with run_scene(slow_seconds=SLOW_SECONDS) as scene:
        await scene.send(GET, never)
        if is_handed_over:
            await scene.handed_over(HandOver.SLOW)
        exchanges = scene.gateway.gateway.exchanges
        rows = await exchanges.live.rows()
        assert exchanges.cancel(rows[0]["id"], "127.0.0.1")
        received = await scene.client.read_to_end()
        assert split_response(received)[0] >= 500
        assert problem_of(received)["code"] == "operator_cancelled"
        await scene.upstream.wait_finished()
        line = await scene.last_line()
        assert line["code"] == "operator_cancelled"
        await scene.reconnect()
        await scene.goes_on()


@pytest.mark.expected_log("gateway", "drain", reason="the time of the drain is over")
async def test_gateway_that_stops_cuts_what_is_under_way() -> None:
    async with run_scene(top={"drain_timeout": "0.01s"}) as scene:
        await scene.send(GET, never)
        await scene.gateway.gateway.stop()
        received = await scene.client.read_to_end()
        assert problem_of(received)["code"] == "cancelled"
        assert scene.gateway.log[-1]["code"] == "cancelled"
        await scene.upstream.wait_finished()


async def test_drain_lets_an_exchange_end_and_closes_its_connection() -> None:
    held = Held()
    async with run_scene() as scene:
        await scene.send(GET, held)
        draining = scene.gateway.gateway.drain()
        await wait_until(lambda: not scene.lane.under_way)
        held.release()
        head = await read_ok(scene.client)
        assert b"\r\nConnection: close\r\n" in head
        await asyncio.wait_for(draining, 10)
        assert scene.gateway.log[-1]["outcome"] == "complete"


async def test_no_request_takes_the_lane_while_draining() -> None:
    async with run_scene(top={"drain_delay": "5s"}) as scene:
        draining = scene.gateway.gateway.drain()
        await wait_until(lambda: scene.gateway.gateway._handler.is_draining)
        await scene.send(GET, serve_ok)
        assert b"\r\nConnection: close\r\n" in await read_ok(scene.client)
        assert (await scene.last_line())["download_lane"] == "copy"
        draining.cancel()


@pytest.mark.parametrize("is_handed_over", [False, True], ids=["before", "after"])
async def test_reload_in_between_changes_nothing_for_what_is_under_way(is_handed_over: bool) -> None:
    held = Held()
    async with run_scene(slow_seconds=SLOW_SECONDS) as scene:
        gateway = scene.gateway.gateway
        before = gateway._runtime
        await scene.send(GET, held)
        config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s"}
        changed = forward_config(scene.upstream.url, upstream_keys={"max_in_flight": 7}, name="s")
        await gateway.reload(lambda: parse_config(json.dumps({**config, **changed})))
        assert gateway._runtime is not before
        assert before.exchanges.in_flight == 1
        if is_handed_over:
            await scene.handed_over(HandOver.SLOW)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert gateway._retired == [before]
        held.release()
        await read_ok(scene.client)
        await scene.settle()
        assert before.exchanges.in_flight == 0
        await wait_until(lambda: not gateway._retired)
        assert scene.gateway.log[-1]["route"] == "r"
        assert gateway.stats.upstreams["up"].slots == 7


async def _fill(scene: Scene, count: int, body: bytes) -> int:
    """Send requests without reading the responses, until the kernel takes no more for the client; return how many."""
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def serve(wire: Wire) -> None:
        await wire.send(response)

    scene.next_one.extend([serve] * count)
    scene.client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
    for number in range(count):
        scene.client.writer.write(GET)
        lines = len(scene.gateway.log)
        await wait_until(lambda: len(scene.gateway.log) > lines or scene.lane.handed_over[HandOver.UNSENT])  # noqa: B023 (here only)
        if scene.lane.handed_over[HandOver.UNSENT]:
            return number + 1
    raise AssertionError("the kernel has taken everything")


async def test_slow_client_holds_its_slot_until_it_has_read_its_response() -> None:
    body = b"x" * 60_000
    async with run_scene(upstream_keys={"max_in_flight": 1}) as scene:
        count = await _fill(scene, 300, body)
        assert scene.taken == 1
        scene.client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # see above
        for _ in range(count):
            await scene.client.read_head()
            assert await scene.client.read_exactly(len(body)) == body
        await scene.settle()
        assert [line["outcome"] for line in scene.gateway.log] == ["complete"] * (count + 1)
        scene.next_one.clear()
        for line in scene.gateway.log:
            assert_adds_up(line)
        await scene.goes_on()


async def test_client_that_reads_nothing_is_cut() -> None:
    async with run_scene(timeouts={"idle": "0.2s"}) as scene:
        await _fill(scene, 300, b"x" * 60_000)
        line = await scene.gateway.wait_log_line(len(scene.gateway.log) + 1)
        assert (line["outcome"], line["blame"]) == ("client_slow", "client")
        scene.client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # see above
        await scene.client.read_to_end()
        await wait_until(lambda: not scene.gateway.gateway.exchange_count)
        assert scene.taken == 0


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with run_scene() as scene:
        count = 12
        requests = [b"GET /%d HTTP/1.1\r\nHost: gw\r\n\r\n" % number for number in range(count)]

        async def serve(wire: Wire) -> None:
            number = scene.requests[-1][0].split()[1][1:]
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number))

        scene.next_one.extend([serve] * count)
        await scene.client.send(b"".join(requests))
        for number in range(count):
            head = await scene.client.read_head()
            body = await scene.client.read_exactly(int(split_response(head)[1]["content-length"]))
            assert body == b"%d" % number
        await scene.settle()
        assert len(scene.gateway.log) == 1 + count
        await scene.goes_on()


@pytest.mark.parametrize("slow_seconds", [30, SLOW_SECONDS], ids=["on the lane", "handed over"])
async def test_pipelined_requests_follow_one_that_was_taken(slow_seconds: float) -> None:
    held = Held()
    async with run_scene(slow_seconds=slow_seconds) as scene:
        await scene.send(GET, held)
        await scene.client.send(GET * 2)
        if slow_seconds == SLOW_SECONDS:
            await scene.handed_over(HandOver.SLOW)
        held.release()
        for _ in range(3):
            await read_ok(scene.client)
        await scene.settle()
        assert len(scene.gateway.log) == 4
        await scene.goes_on()


async def test_last_response_of_a_connection_closes_it() -> None:
    async with run_scene() as scene:
        await scene.send(GET[:-2] + b"Connection: close\r\n\r\n", serve_ok)
        assert b"\r\nConnection: close\r\n" in await read_ok(scene.client)
        assert await scene.client.read_to_end() == b""
        assert (await scene.last_line())["outcome"] == "complete"
        await scene.reconnect()
        await scene.goes_on()


@pytest.mark.interpreted(reason="replaces a function")
@pytest.mark.expected_log("gateway", "bug in", reason="the bug that is provoked")
@pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])
async def test_bug_while_a_response_is_passed_on_is_a_500(
    request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_scene() as scene:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.express.exchange.ExpressExchange._pass_on", _fail)
            await scene.send(request_bytes, serve_ok)
            received = await scene.client.read_head()
        assert b" 500 " in received
        await scene.client.read_exactly(int(split_response(received)[1]["content-length"]))
        line = await scene.last_line()
        assert (line["code"], line["blame"]) == ("bug", "gateway")
        await scene.upstream.wait_finished()
        if b"Connection: close" in received:
            await scene.reconnect()
        await scene.goes_on()


def _fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError


@pytest.mark.interpreted(reason="replaces a function")
@pytest.mark.expected_log("gateway", "bug in", reason="the bug that is provoked")
@pytest.mark.parametrize(
    ("where", "request_bytes", "most_sent"),
    [
        ("gateway.upstream.pool.UpstreamPool.take_kept", GET, 0),
        ("gateway.upstream.pool.UpstreamPool.start", GET, 0),
        ("gateway.upstream.pool.Started", GET, 1),
        ("gateway.upstream.pool.Started", POST, 1),
        ("gateway.downstream.exchange.WholeTransfer", POST, 1),
        ("gateway.downstream.exchange.Exchange.record_part", FORM % (len(FORM_BODY), FORM_BODY), 1),
    ],
)
async def test_bug_while_a_request_is_sent_is_a_500_and_does_not_send_it_again(
    where: str, request_bytes: bytes, most_sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bug behind the send, the normal path sent the request once more, and its slot stayed taken."""
    async with run_scene() as scene:
        with monkeypatch.context() as patch:
            patch.setattr(where, _fail)
            await scene.client.send(request_bytes)
            received = await scene.client.read_head()
            await scene.client.read_exactly(int(split_response(received)[1]["content-length"]))
        assert b" 500 " in received
        line = await scene.last_line()
        assert (line["code"], line["blame"]) == ("bug", "gateway")
        await scene.upstream.wait_finished()
        assert len(scene.requests) <= 1 + most_sent
        if b"Connection: close" in received:
            await scene.reconnect()
        await scene.goes_on()


@pytest.mark.interpreted(reason="replaces a function")
@pytest.mark.expected_log("gateway", "bug in", reason="the bug that is provoked")
async def test_bug_while_an_exchange_ends_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's connection waited for ever, and the slot stayed taken, without a line in the log."""
    async with run_scene() as scene:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.downstream.exchange.Exchange.count_download", _fail)
            await scene.send(GET, serve_ok)
            await read_ok(scene.client)
            line = await scene.last_line()
        assert (line["status"], line["code"], line["blame"]) == (200, "bug", "gateway")
        await scene.reconnect()
        await scene.goes_on()


@pytest.mark.expected_log("asyncio", "protocol.data_received", reason="the bug that is provoked")
async def test_bug_in_the_log_holds_up_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_scene() as scene:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.handler.ExchangeHandler._record", _fail)
            await scene.send(GET, serve_ok)
            await read_ok(scene.client)
            await scene.settle()
        await scene.goes_on()


async def test_request_without_a_kept_connection_takes_its_turn_on_the_normal_path() -> None:
    async with RawUpstream(_serve_all) as other:
        async with run_scene() as scene:
            first = scene.upstream.url
            config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s"}
            changed = forward_config([first, other.url])
            await scene.gateway.gateway.reload(lambda: parse_config(json.dumps({**config, **changed})))
            for _ in range(6):
                await scene.warm()
            lines = scene.gateway.log[1:]
            endpoints = [line["endpoint"] for line in lines]
            assert endpoints in ([first, other.url] * 3, [other.url, first] * 3)
            assert [line["download_lane"] for line in lines] == ["copy"] * 2 + ["express"] * 4


async def test_route_that_matches_by_form_fields_is_never_taken() -> None:
    """The lane took a route by its path alone: a request that is no form went to the upstream of the first one."""
    async with RawUpstream(_serve_all) as other:
        async with run_scene() as scene:
            config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s"}
            changed = forward_config(scene.upstream.url)
            changed["upstreams"]["other"] = {"endpoints": [other.url]}
            by_field = {"name": "f", "match": {"prefix": "/", "form_fields": {"model": "a"}}}
            changed["routes"].insert(0, {**by_field, "forward": {"upstream": "other"}})
            await scene.gateway.gateway.reload(lambda: parse_config(json.dumps({**config, **changed})))
            body = form(('name="model"', b"a"))
            for request, route in [(GET, "r"), (POST, "r"), (FORM % (len(body), body), "f")] * 3:
                await scene.client.send(request)
                await read_ok(scene.client)
                assert (await scene.last_line())["route"] == route
                assert scene.gateway.log[-1]["download_lane"] == "copy"


async def _serve_all(wire: Wire) -> None:
    while True:
        await read_request(wire)
        await wire.send(OK)


async def test_request_that_finds_no_slot_waits_for_one_on_the_normal_path() -> None:
    held = Held()
    async with run_scene(upstream_keys={"max_in_flight": 1}) as scene:
        await scene.send(GET, held)
        other = await scene.gateway.connect()
        await other.send(GET)
        await wait_until(lambda: scene.gateway.stats.upstreams["up"].queue_length)
        held.release()
        await read_ok(scene.client)
        await read_ok(other)
        await other.close()
        await scene.goes_on()


@pytest.mark.slow
async def test_connection_is_kept_while_exchanges_take_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.downstream.connection.KEEPALIVE_SECONDS", 0.3)
    async with run_scene() as scene:
        end = asyncio.get_running_loop().time() + 0.7
        while asyncio.get_running_loop().time() < end:
            await scene.warm()
        # Idle now: it is closed.
        assert await scene.client.read_to_end() == b""


async def test_body_that_follows_its_head_is_awaited_on_the_lane() -> None:
    """Clients in Python send both one after the other: their requests took the normal path."""
    head, body = POST[:-4], POST[-4:]
    async with run_scene() as scene:
        for pieces in ([head, body], [head, body[:1], body[1:]], [head + body[:2], body[2:]]):
            for piece in pieces[:-1]:
                await scene.client.send(piece)
                await scene.held(len(piece))
            # The wait that is looked for in the log.
            await asyncio.sleep(0.01)
            assert scene.gateway.gateway.exchange_count == 0
            await scene.send(pieces[-1], serve_ok)
            await read_ok(scene.client)
            line = await scene.last_line()
            assert (line["upload_lane"], line["upload_bytes"]) == ("express", 4)
            # The exchange began with its head.
            assert line["wait_seconds"]["downstream_read"] >= 0.01
            assert_adds_up(line)
        await scene.goes_on()


async def test_body_that_does_not_follow_its_head_is_awaited_by_the_normal_path() -> None:
    async with run_scene(hold_seconds=SLOW_SECONDS) as scene:
        await scene.client.send(POST[:-1])
        await wait_until(lambda: scene.gateway.gateway.exchange_count == 1)
        await scene.send(POST[-1:], serve_ok)
        await read_ok(scene.client)
        assert (await scene.last_line())["upload_lane"] == "copy"
        await scene.goes_on()


@pytest.mark.parametrize("with_reset", [False, True])
async def test_client_that_leaves_before_its_body_followed(with_reset: bool) -> None:
    """After a reset there was no line in the log."""
    async with run_scene() as scene:
        await scene.client.send(POST[:-1])
        await scene.held(len(POST) - 1)
        if with_reset:
            scene.client.reset()
        await scene.reconnect()
        line = await scene.gateway.wait_log_line(2)
        assert (line["method"], line["outcome"], line["blame"]) == ("POST", "client_left", "client")
        await scene.goes_on()
        assert len(scene.requests) == len([line for line in scene.gateway.log if line["outcome"] == "complete"])


async def test_requests_that_come_with_the_rest_of_a_body_are_responded_to() -> None:
    async with run_scene() as scene:
        await scene.client.send(POST[:-1])
        await scene.held(len(POST) - 1)
        await scene.client.send(POST[-1:] + GET)
        for _ in range(2):
            await read_ok(scene.client)
        assert [body for _, body in scene.requests[1:]] == [b"body", b""]
        await scene.goes_on()


async def test_drain_waits_for_a_body_that_is_awaited() -> None:
    async with run_scene() as scene:
        await scene.client.send(POST[:-1])
        await scene.held(len(POST) - 1)
        drained = scene.gateway.gateway.drain()
        await scene.client.send(POST[-1:])
        assert b"\r\nConnection: close\r\n" in await read_ok(scene.client)
        await drained


@pytest.mark.interpreted(reason="replaces a function")
@pytest.mark.expected_log("gateway", "bug in", reason="the bug that is provoked")
async def test_bug_while_a_request_is_sent_is_a_500_also_if_a_reload_comes_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with run_scene() as scene:
        handler = scene.gateway.gateway._handler
        before = handler.runtime

        def fail(*_: object) -> None:
            handler.runtime = copy.copy(before)
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr("gateway.downstream.exchange.WholeTransfer", fail)
            await scene.client.send(POST)
            received = await scene.client.read_head()
            await scene.client.read_exactly(int(split_response(received)[1]["content-length"]))
        handler.runtime = before
        assert b" 500 " in received
        assert len(scene.requests) <= 2
        await scene.goes_on()
