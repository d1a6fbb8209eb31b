"""Every second of an exchange is charged to a leg: the legs add up, and the slow party gets the time.

A party is slow until scrapes show that its leg was charged, and no other: no test waits for a clock, and one that
charges the wrong leg, or only at the end of a wait, does not end. tests/invariants/test_every_leg.py has the same for
every action and lane.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.stats import Leg
from tests.peers import (
    OK,
    RawUpstream,
    Script,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    read_request,
    responding,
    run_gateway,
    split_response,
)
from tests.s3_server import S3Server
from tests.scenes import HELD_SECONDS, Scene, assert_adds_up, frozen

DATA = b"d" * 400_000
#: More than socket buffers take.
LARGE = b"L" * 16_000_000
FILE = ('name="f"; filename="a.bin"', DATA)
GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def scene(script: Callable[[Scene], Script], **config: Any) -> AsyncIterator[tuple[Scene, RawUpstream]]:
    """Run a gateway that forwards to an upstream with this script."""
    made = Scene()
    async with RawUpstream(script(made)) as upstream, run_gateway(forward_config(upstream.url, **config)) as gateway:
        made.gateway = gateway
        yield made, upstream


def quick(_scene: Scene) -> Script:
    return responding(OK)


def late(made: Scene) -> Script:
    """Return a script that holds each response back."""

    async def run(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await made.hold(Leg.UPSTREAM_RESPONSE)
            await wire.send(OK)

    return run


async def test_client_that_sends_slowly_is_charged() -> None:
    async with scene(quick) as (made, _):
        client = await made.gateway.connect()
        request = post(DATA, content_type="text/plain")
        await client.send(request[:200_000])
        await made.hold(Leg.DOWNSTREAM_READ)
        await client.send(request[200_000:])
        assert split_response(await client.read_to_end())[0] == 200
        await client.close()
        line = await made.line()
        assert max(line["wait_seconds"], key=line["wait_seconds"].get) == "downstream_read"


async def test_client_that_sends_the_fields_that_choose_its_route_slowly_is_charged() -> None:
    body = form(("name=model", b"a"), FILE)
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url)
        config["routes"].append({**config["routes"][0], "name": "s"})
        config["routes"][0]["match"] = {"prefix": "/", "form_fields": {"model": "a"}}
        async with run_gateway(config) as gateway:
            made = Scene()
            made.gateway = gateway
            client = await gateway.connect()
            head, blank_line, _ = post(body).partition(b"\r\n\r\n")
            await client.send(head + blank_line)
            await made.hold(Leg.DOWNSTREAM_READ)
            await client.send(body)
            await client.read_to_end()
            await client.close()
            assert (await made.line())["wait_seconds"]["downstream_read"] >= HELD_SECONDS


async def test_client_that_reads_slowly_is_charged() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE)
    async with scene(lambda _: responding(head + LARGE)) as (made, _):
        client = await made.gateway.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that does not read
        await client.send(GET)
        await made.hold(Leg.DOWNSTREAM_WRITE)
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # see above
        assert len(await client.read_to_end()) > len(LARGE)
        await client.close()
        await made.line()


@pytest.mark.parametrize("body", ["none", "raw", "form", "chunked", "reencoded", "mirrored"])
async def test_slow_service_is_charged(body: str) -> None:
    """An inference of 40 s was charged to no leg."""
    request, keys = _request(body)
    async with RawUpstream(responding(OK)) as mirror:
        made = Scene()
        async with RawUpstream(late(made)) as upstream:
            config = forward_config(upstream.url, **keys)
            if body == "mirrored":
                config["routes"][0]["forward"]["mirror"] = {"upstream": "m"}
                config["upstreams"]["m"] = {"endpoints": [mirror.url]}
            async with run_gateway(config) as gateway:
                made.gateway = gateway
                assert split_response(await gateway.request(request))[0] == 200
                line = await made.line()
                assert max(line["wait_seconds"], key=line["wait_seconds"].get) == "upstream_response"


def _request(body: str) -> tuple[bytes, dict[str, Any]]:
    """Return a request, and keys of the route it goes to."""
    raw, whole = post(DATA, content_type="text/plain"), post(form(("name=a", b"1"), FILE))
    if body == "chunked":
        head = whole.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        return head + chunked(form(FILE)), {}
    requests = {"none": GET, "raw": raw, "form": whole, "mirrored": whole, "reencoded": whole}
    return requests[body], {"forward": {"multipart": "strict"}} if body == "reencoded" else {}


@pytest.mark.parametrize("body", ["raw", "form", "reencoded"])
async def test_upstream_that_reads_slowly_is_charged(body: str) -> None:
    def script(made: Scene) -> Script:
        async def run(wire: Wire) -> None:
            await wire.read_head()
            await made.hold(Leg.UPSTREAM_WRITE)
            await wire.send(OK)
            await wire.read_to_end()

        return run

    keys = {"forward": {"multipart": "strict"}} if body == "reencoded" else {}
    async with scene(script, **keys) as (made, _):
        client = await made.gateway.connect()
        large = LARGE if body == "raw" else form(('name="f"; filename="a"', LARGE))
        request = post(large, content_type="text/plain" if body == "raw" else "")
        sending = asyncio.create_task(client.send_all([request]))
        await client.read_head()
        await sending
        await client.close()
        line = await made.gateway.wait_log_line()
        assert_adds_up(line, may_overlap=True)
        assert line["wait_seconds"]["upstream_write"] >= HELD_SECONDS


async def test_upstream_that_sends_slowly_is_charged() -> None:
    def script(made: Scene) -> Script:
        async def run(wire: Wire) -> None:
            await read_request(wire)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA[:200_000])
            await made.hold(Leg.UPSTREAM_READ)
            await wire.send(DATA[200_000:])

        return run

    async with scene(script) as (made, _):
        assert (await made.gateway.request(GET)).endswith(DATA)
        await made.line()


async def test_response_beside_an_upload_is_charged_beside_it() -> None:
    def script(made: Scene) -> Script:
        async def run(wire: Wire) -> None:
            await wire.read_head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
            await made.hold(Leg.UPSTREAM_READ, beside={Leg.DOWNSTREAM_READ})
            await made.hold(Leg.DOWNSTREAM_READ, beside={Leg.UPSTREAM_READ})
            await wire.send(b"k")
            await wire.read_to_end()

        return run

    async with scene(script) as (made, _):
        client = await made.gateway.connect()
        await client.send(post(DATA, content_type="text/plain")[:1000])
        await client.read_head()
        await client.read_exactly(2)
        await client.close()
        line = await made.gateway.wait_log_line()
        assert_adds_up(line, may_overlap=True)
        assert sum(line["wait_seconds"].values()) > line["seconds"] + HELD_SECONDS / 2


@pytest.mark.parametrize("body", ["none", "raw"])
async def test_wait_for_a_slot_is_charged_to_the_queue(body: str) -> None:
    """A wait of 85 s in the queue was charged to no leg."""

    def script(made: Scene) -> Script:
        async def run(wire: Wire) -> None:
            await read_request(wire)
            await made.hold(Leg.QUEUE, beside={Leg.UPSTREAM_RESPONSE})
            await wire.send(OK)
            await read_request(wire)
            await wire.send(OK)

        return run

    async with scene(script, upstream_keys={"max_in_flight": 1}) as (made, upstream):
        first = asyncio.create_task(made.gateway.request(GET))
        await upstream.connected.wait()
        assert split_response(await made.gateway.request(_request(body)[0]))[0] == 200
        await first
        await made.line(1)
        assert (await made.line(2))["wait_seconds"]["queue"] >= HELD_SECONDS


async def test_slow_connection_is_charged_to_connect() -> None:
    def script(made: Scene) -> Script:
        async def run(wire: Wire) -> None:
            # No server hello: TLS is part of connecting.
            await made.hold(Leg.CONNECT)
            await wire.close()

        return run

    made = Scene()
    async with RawUpstream(script(made)) as upstream:
        async with run_gateway(forward_config(upstream.url.replace("http:", "https:"))) as gateway:
            made.gateway = gateway
            assert split_response(await gateway.request(GET))[0] == 502
            line = await made.line()
            assert max(line["wait_seconds"], key=line["wait_seconds"].get) == "connect"


async def test_filter_that_delays_is_charged() -> None:
    # It delays for longer than any scrape takes, so the client leaves.
    filters = [{"throttle": {"rate": "1kB/s"}}]
    async with scene(quick, filters=filters) as (made, _):
        client = await made.gateway.connect()
        await client.send(post(form(FILE)))
        await made.hold(Leg.FILTER)
        client.reset()
        line = await made.line()
        assert line["code"] == "client_left"
        assert max(line["wait_seconds"], key=line["wait_seconds"].get) == "filter"


@pytest.mark.parametrize("body", ["multipart", "raw"])
@pytest.mark.parametrize("count", [1, 3])
async def test_slow_service_of_a_split_is_charged_for_each_file(body: str, count: int) -> None:
    made = Scene()
    async with RawUpstream(late(made)) as upstream:
        config = forward_config(upstream.url)
        del config["routes"][0]["forward"]
        config["routes"][0]["split"] = {"upstream": "up", "body": body}
        async with run_gateway(config) as gateway:
            made.gateway = gateway
            assert split_response(await gateway.request(post(form(*[FILE] * count))))[0] == 200
            line = await gateway.wait_log_line()
            assert_adds_up(line, may_overlap=True)
            assert sum(line["wait_seconds"].values()) <= line["seconds"] * (count + 1)
            assert line["wait_seconds"]["upstream_response"] >= HELD_SECONDS


async def test_fetched_url_is_charged_like_an_upstream() -> None:
    made = Scene()
    async with RawUpstream(late(made)) as upstream:
        fetch = {"allow": [upstream.url + "/"], "private_networks": "allow"}
        config = {"routes": [{"name": "f", "match": {"prefix": "/"}, "fetch": fetch}]}
        async with run_gateway(config) as gateway:
            made.gateway = gateway
            target = f"GET /{upstream.url}/x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
            assert (await gateway.request(target.encode())).endswith(b"ok")
            await made.line()


@pytest.mark.parametrize("body", ["raw", "form"])
async def test_slow_disk_is_charged_for_what_is_stored_and_served(tmp_path: Path, body: str) -> None:
    """A raw upload that waited for a frozen disk was charged to the client."""
    directory = {"directory": str(tmp_path)}
    config = {
        "routes": [
            {"name": "up", "match": {"prefix": "/", "methods": ["POST"]}, "store": directory},
            {"name": "down", "match": {"prefix": "/"}, "files": directory},
        ]
    }
    request = post(DATA, target="/a.bin", content_type="text/plain") if body == "raw" else post(form(FILE))
    async with run_gateway(config) as gateway:
        for count, (asked, leg, status) in enumerate(
            [(request, Leg.DISK_WRITE, 201), (GET.replace(b"/ ", b"/a.bin "), Leg.DISK_READ, 200)], 1
        ):
            made = Scene()
            made.gateway = gateway
            with frozen(tmp_path):
                asking = asyncio.create_task(gateway.request(asked))
                await made.hold(leg)
            assert split_response(await asking)[0] == status
            line = await made.line(count)
            assert max(line["wait_seconds"], key=line["wait_seconds"].get) == leg


async def test_bucket_is_charged_like_an_upstream(s3_server: S3Server) -> None:
    bucket = {"url": "s3://bucket/in", "endpoint": s3_server.url, "region": "us-east-1"}
    config = {
        "routes": [
            {"name": "up", "match": {"prefix": "/", "methods": ["POST"]}, "store": bucket},
            {"name": "down", "match": {"prefix": "/"}, "files": bucket},
        ]
    }
    made = Scene()
    async with run_gateway(config) as made.gateway:
        assert split_response(await made.gateway.request(post(form(FILE))))[0] == 201
        stored = await made.line(1)
        assert split_response(await made.gateway.request(GET.replace(b"/ ", b"/a.bin ")))[0] == 200
        served = await made.line(2)
    assert max(stored["wait_seconds"], key=stored["wait_seconds"].get) == "upstream_write"
    assert max(served["wait_seconds"], key=served["wait_seconds"].get) == "upstream_read"
