"""mirror: the second upstream gets the same request, complete or cut like the primary, and never affects it."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.actions.mirror import _CHECKS_PER_LIMIT, Tee, _TeeBody
from gateway.errors import Fault, Outcome
from gateway.observe.stats import RouteStats
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    RunningGateway,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    run_gateway,
    split_response,
    wait_until,
)

DATA = os.urandom(3_000_000)
FORM = form(('name="f"; filename="a"', DATA))


def config(primary: str, shadow: str | None = None, **mirror: Any) -> dict[str, Any]:
    route = mirror.pop("route", {})
    if shadow is not None:
        mirror["upstream"] = "shadow"
    keys = forward_config(primary, forward={"mirror": mirror}, **route)
    if shadow is not None:
        keys["upstreams"]["shadow"] = {"endpoints": [shadow], "timeouts": {"idle": "1s", "response": "1s"}}
    return keys


async def stats_after_mirror(gateway: RunningGateway) -> RouteStats:
    """Wait until a mirror has ended and return the statistics of the route."""
    stats = gateway.stats.routes["r"]
    await wait_until(lambda: stats.mirrors.total())
    return stats


class RecordingUpstream(RawUpstream):
    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        super().__init__(self._record)

    async def _record(self, wire: Wire) -> None:
        while True:
            self.requests.append(await read_request(wire))
            await wire.send(OK)


@pytest.mark.parametrize("filters", [[], ["digest"]])
async def test_mirror_receives_the_same_request(filters: list[str]) -> None:
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        async with run_gateway(config(primary.url, shadow.url, route={"filters": filters})) as gateway:
            assert split_response(await gateway.request(post(FORM, target="/x?y")))[0] == 200
            stats = await stats_after_mirror(gateway)
            assert shadow.requests[0][1] == primary.requests[0][1] == FORM
            assert shadow.requests[0][0].startswith(b"POST /x?y HTTP/1.1\r\n")
            assert b"Content-Length: %d\r\n" % len(FORM) in shadow.requests[0][0]
            assert (+Counter(stats.mirrors), stats.mirror_bytes["sent"]) == ({Outcome.COMPLETE: 1}, len(FORM))


async def test_request_without_a_body_is_mirrored_too() -> None:
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        async with run_gateway(config(primary.url, shadow.url)) as gateway:
            await gateway.request(b"GET /x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            await stats_after_mirror(gateway)
            assert shadow.requests[0][0].startswith(b"GET /x HTTP/1.1\r\n")


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_no_request_is_mirrored_at_0_percent() -> None:
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        async with run_gateway(config(primary.url, shadow.url, percent=0)) as gateway:
            for _ in range(5):
                await gateway.request(post(b"x", content_type="x/y"))
            assert not shadow.wires
            assert not gateway.stats.routes["r"].mirrors.total()


async def test_slow_mirror_is_dropped_and_its_bytes_add_up() -> None:
    finish = asyncio.Event()

    async def never_reads(wire: Wire) -> None:
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]  # an upstream that does not read
        await finish.wait()

    async with RecordingUpstream() as primary, RawUpstream(never_reads) as shadow:
        async with run_gateway(config(primary.url, shadow.url, buffer="256KiB")) as gateway:
            big = os.urandom(1_000_000) * 12
            assert split_response(await gateway.request(post(big, content_type="x/y")))[0] == 200
            assert primary.requests[0][1] == big
            stats = await stats_after_mirror(gateway)
            assert +Counter(stats.mirrors) == {Outcome.LIMIT: 1}
            assert stats.mirror_bytes["sent"] + stats.mirror_bytes["dropped"] == len(big)
            assert stats.mirror_bytes["dropped"] > 0
            finish.set()


async def test_mirror_dropped_with_the_last_chunk_never_looks_complete() -> None:
    """The body ends in the same read that drops the mirror. A final chunk would make a cut body look complete."""
    body = b"x" * 300_000
    head = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def read_without_response(wire: Wire) -> None:
        await wire.read_head()
        await wire.read_to_end()

    async with RecordingUpstream() as primary, RawUpstream(read_without_response) as shadow:
        async with run_gateway(config(primary.url, shadow.url, buffer="100KiB")) as gateway:
            client = await gateway.connect()
            await client.send(head + b"5\r\nfirst\r\n")
            await asyncio.wait_for(shadow.connected.wait(), TIMEOUT_SECONDS)
            await client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            assert split_response(await client.read_to_end())[0] == 200
            await client.close()
            assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.LIMIT: 1}
            await shadow.wait_finished()
            assert not shadow.received.endswith(b"0\r\n\r\n")


def test_read_of_a_dropped_tee_fails() -> None:
    async def read(tee: Tee) -> None:
        reading = asyncio.ensure_future(tee.read())
        # Let the read start, so that it is waiting when the mirror is dropped.
        await asyncio.sleep(0)
        tee.feed_data(b"x" * 11)
        tee.finish()
        with pytest.raises(Fault):
            await reading

    asyncio.run(read(Tee(10, RouteStats("r"))))


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_mirror_that_requires_a_length_does_not_affect_the_primary() -> None:
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        keys = config(primary.url, shadow.url)
        keys["upstreams"]["shadow"]["framing"] = "length_required"
        async with run_gateway(keys) as gateway:
            head = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert split_response(await gateway.request(head + b"1\r\nx\r\n0\r\n\r\n"))[0] == 200
            assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.REFUSED: 1}
            assert not shadow.wires


async def test_mirror_that_is_down_does_not_affect_the_primary() -> None:
    async with RecordingUpstream() as primary, run_gateway(config(primary.url, "http://127.0.0.1:9")) as gateway:
        assert split_response(await gateway.request(post(FORM)))[0] == 200
        assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.UPSTREAM_FAILED: 1}


async def test_mirror_that_sends_no_response_times_out() -> None:
    async def send_no_response(wire: Wire) -> None:
        await wire.read_to_end()

    async with RecordingUpstream() as primary, RawUpstream(send_no_response) as shadow:
        async with run_gateway(config(primary.url, shadow.url)) as gateway:
            assert split_response(await gateway.request(post(FORM)))[0] == 200
            assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.UPSTREAM_SLOW: 1}


@pytest.mark.parametrize("cause", ["client", "digest"])
async def test_body_cut_for_the_primary_is_cut_for_the_mirror(cause: str) -> None:
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        async with run_gateway(config(primary.url, shadow.url, route={"filters": ["digest"]})) as gateway:
            if cause == "client":
                client = await gateway.connect()
                await client.send_all([post(FORM)[:2_000_000]])
                await asyncio.wait_for(shadow.connected.wait(), TIMEOUT_SECONDS)
                client.reset()
            else:
                wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
                headers = f"Content-Digest: sha-256=:{wrong}:\r\n"
                problem = problem_of(await gateway.request(post(DATA, content_type="x/y", headers=headers)))
                assert problem["code"] == "digest_mismatch"
            assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.CANCELLED: 1}
            assert not shadow.requests
            assert not primary.requests


async def test_bodies_are_mirrored_to_a_directory_complete_or_not_at_all(tmp_path: Path) -> None:
    async with RecordingUpstream() as primary, run_gateway(config(primary.url, directory=str(tmp_path))) as gateway:
        assert split_response(await gateway.request(post(FORM)))[0] == 200
        stats = await stats_after_mirror(gateway)
        assert +Counter(stats.mirrors) == {Outcome.COMPLETE: 1}
        (name,) = os.listdir(tmp_path)
        assert (tmp_path / name).read_bytes() == FORM
        client = await gateway.connect()
        await client.send_all([post(FORM)[:2_000_000]])
        await wait_until(lambda: gateway.stats.routes["r"].in_flight)
        client.reset()
        await wait_until(lambda: stats.mirrors[Outcome.CANCELLED])
        await wait_until(lambda: len(os.listdir(tmp_path)) == 1)


async def test_gateway_stops_without_waiting_for_a_mirror() -> None:
    connected, finish = asyncio.Event(), asyncio.Event()

    async def send_no_response(wire: Wire) -> None:
        connected.set()
        await finish.wait()

    async with RecordingUpstream() as primary, RawUpstream(send_no_response) as shadow:
        async with run_gateway(config(primary.url, shadow.url)) as gateway:
            assert split_response(await gateway.request(post(FORM)))[0] == 200
            await connected.wait()
        assert gateway.stats.routes["r"].mirrors.total() == 1
        finish.set()


async def test_tiny_chunks_in_the_queue_are_joined() -> None:
    """A chunk of one byte takes forty: a queue of 4 MiB was 160."""
    tee = Tee(10_000, RouteStats("r"))
    for _ in range(9000):
        tee.feed_data(b"x")
    tee.finish()
    sizes = []
    while chunk := await tee.read():
        tee.confirm(chunk)
        sizes.append(len(chunk))
    assert sum(sizes) == 9000
    assert len(sizes) < 10


async def test_mirror_that_stops_reading_is_slow_and_not_lost() -> None:
    """A timeout is an OSError: it was once taken for a lost connection, and counted as upstream_failed."""

    class StuckSink:
        async def write(self, chunk: bytes) -> None:
            await asyncio.Event().wait()

        def acknowledged(self) -> int:
            return 0

    tee = Tee(1000, RouteStats("r"))
    tee.feed_data(b"chunk")
    stuck: Any = StuckSink()
    with pytest.raises(Fault) as raised:
        await _TeeBody(tee, idle_seconds=0.01).send_to(stuck)
    assert raised.value.outcome is Outcome.UPSTREAM_SLOW


async def test_mirror_that_reads_slowly_is_not_stuck() -> None:
    """The limit for silence was one for the whole chunk."""

    class SlowSink:
        """Takes a chunk after it has been looked at for twice the limit, and has read something each time."""

        def __init__(self) -> None:
            self.reads = 0
            self.is_taken = asyncio.Event()

        async def write(self, chunk: bytes) -> None:
            await self.is_taken.wait()

        def acknowledged(self) -> int:
            self.reads += 1
            if self.reads > 2 * _CHECKS_PER_LIMIT:
                self.is_taken.set()
            return self.reads

    tee = Tee(1000, RouteStats("r"))
    tee.feed_data(b"chunk")
    tee.finish()
    slow: Any = SlowSink()
    await _TeeBody(tee, idle_seconds=0.05).send_to(slow)
    assert tee._stats.mirror_bytes["sent"] == len(b"chunk")


@pytest.mark.slow
async def test_mirror_that_sends_its_response_slowly_is_not_silent() -> None:
    """The limit for silence was one for the whole response."""
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", *[b"x"] * 4]

    async def trickle(wire: Wire) -> None:
        await read_request(wire)
        for piece in pieces:
            await wire.send(piece)
            # A third of the limit.
            await asyncio.sleep(0.35)

    async with RecordingUpstream() as primary, RawUpstream(trickle) as shadow:
        async with run_gateway(config(primary.url, shadow.url)) as gateway:
            assert split_response(await gateway.request(post(b"x", content_type="x/y")))[0] == 200
            assert +Counter((await stats_after_mirror(gateway)).mirrors) == {Outcome.COMPLETE: 1}


async def test_request_refused_before_its_mirror_begins_leaves_no_coroutine() -> None:
    """The mirror's task was cancelled before its first step: "coroutine '_send' was never awaited"."""
    head = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with RecordingUpstream() as primary, RecordingUpstream() as shadow:
        settings = config(primary.url, shadow.url)
        settings["upstreams"]["up"]["framing"] = "length_required"
        async with run_gateway(settings) as gateway:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert problem_of(await gateway.request(head, chunked(b"x")))["status"] == 411
                await gateway.wait_log_line()
                gc.collect()
    assert not caught
