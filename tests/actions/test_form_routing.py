"""Routes chosen by a form field before the first file; the body arrives identical."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from typing import Any

import pytest

from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    chunked,
    form,
    post,
    problem_of,
    read_request,
    run_gateway,
    split_response,
)

FILE = ('name="f"; filename="a.wav"', os.urandom(400_000))


class NamedUpstream(RawUpstream):
    """An upstream that records each body and responds with its own name."""

    def __init__(self, name: bytes) -> None:
        self.bodies: list[bytes] = []
        self._name = name
        super().__init__(self._serve_all)

    async def _serve_all(self, wire: Wire) -> None:
        while True:
            self.bodies.append((await read_request(wire))[1])
            await wire.send(
                OK[:-2].replace(b"2", b"%d" % len(self._name), 2).replace(b"%d00" % len(self._name), b"200")
            )
            await wire.send(self._name)


def config(big: NamedUpstream, small: NamedUpstream, *, has_default: bool = True, **limits: Any) -> dict[str, Any]:
    def route(name: str, upstream: str, field: dict[str, str]) -> dict[str, Any]:
        match = {"path": "/v1", **({"form_fields": field} if field else {})}
        return {"name": name, "match": match, "forward": {"upstream": upstream}, "limits": limits}

    routes = [route("whisper", "big", {"model": "whisper-*"}), route("tiny", "small", {"model": "tiny"})]
    if has_default:
        routes.append(route("default", "small", {}))
    return {
        "upstreams": {"big": {"endpoints": [big.url]}, "small": {"endpoints": [small.url]}},
        "routes": routes,
    }


def form_request(*parts: tuple[str, bytes]) -> bytes:
    return post(form(*parts), target="/v1")


MODEL = ('name="model"', b"whisper-large")
OTHERS = [('name="lang"', b"de"), ('name="prompt"', b"x" * 3000)]


@pytest.mark.parametrize("order", list(itertools.permutations([MODEL, *OTHERS])))
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_field_before_the_file_chooses_the_route_and_the_body_arrives_identical(order: Any, framing: str) -> None:
    async with (
        NamedUpstream(b"big") as big,
        NamedUpstream(b"small") as small,
        run_gateway(config(big, small)) as gateway,
    ):
        request = form_request(*order, FILE)
        body = request.partition(b"\r\n\r\n")[2]
        if framing == "chunked":
            head = request.partition(b"Content-Length")[0]
            request = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body[:50], body[50:1000], body[1000:])
        client = await gateway.connect()
        generator, at = random.Random(len(order[0][0])), 0
        while at < len(request):
            size = generator.choice((30, 300, 70_000))
            await client.send(request[at : at + size])
            at += size
        assert split_response(await client.read_to_end())[2] == b"big"
        await client.close()
        assert (big.bodies, small.bodies) == ([body], [])
        line = await gateway.wait_log_line()
        assert (line["route"], line["upload_bytes"]) == ("whisper", len(body))


async def test_upstream_is_connected_as_soon_as_the_field_is_received() -> None:
    async with (
        NamedUpstream(b"big") as big,
        NamedUpstream(b"small") as small,
        run_gateway(config(big, small)) as gateway,
    ):
        request = form_request(MODEL, FILE)
        client = await gateway.connect()
        await client.send(request[: request.index(b"a.wav") + 100])
        await asyncio.wait_for(big.connected.wait(), TIMEOUT_SECONDS)
        await client.send_all([request[request.index(b"a.wav") + 100 :]])
        assert split_response(await client.read_to_end())[2] == b"big"
        await client.close()


@pytest.mark.new_connection(reason="no connection may be opened")
@pytest.mark.parametrize(
    "parts",
    [[FILE, MODEL], [FILE], [('name="model"', b"other"), FILE], [('name="lang"', b"de")]],
    ids=["field after the file", "field missing", "unknown value", "no file"],
)
@pytest.mark.parametrize("has_default", [True, False])
async def test_form_that_matches_no_route_goes_to_the_default_route_or_is_refused(
    parts: Any, has_default: bool
) -> None:
    async with NamedUpstream(b"big") as big, NamedUpstream(b"small") as small:
        async with run_gateway(config(big, small, has_default=has_default)) as gateway:
            response = await gateway.request(form_request(*parts))
            if has_default:
                assert split_response(response)[2] == b"small"
                assert (await gateway.wait_log_line())["route"] == "default"
                assert not big.bodies
            else:
                problem = problem_of(response)
                assert (problem["status"], problem["code"]) == (422, "late_field")
                assert "(model)" in problem["detail"]
                assert not big.wires
                assert not small.wires


async def test_body_that_is_not_a_form_goes_to_the_default_route() -> None:
    async with (
        NamedUpstream(b"big") as big,
        NamedUpstream(b"small") as small,
        run_gateway(config(big, small)) as gateway,
    ):
        response = await gateway.request(post(b"raw", target="/v1", content_type="text/plain"))
        assert split_response(response)[2] == b"small"
        response = await gateway.request(b"GET /v1 HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert split_response(response)[2] == b"small"


@pytest.mark.new_connection(reason="no connection may be opened")
@pytest.mark.parametrize(
    ("parts", "limits", "code"),
    [
        ([MODEL, ('name="model"', b"tiny"), FILE], {}, "bad_multipart"),
        ([('name="a"', b"x" * 200), MODEL, FILE], {"max_held": 100}, "field_too_large"),
        ([(f'name="{"a" * 200}"', b""), MODEL, FILE], {"max_held": 100}, "field_too_large"),
        ([('name="a"', b"x" * 200), MODEL, FILE], {"max_field": 100}, "field_too_large"),
    ],
)
async def test_duplicate_or_too_large_fields_are_refused(parts: Any, limits: Any, code: str) -> None:
    async with (
        NamedUpstream(b"big") as big,
        NamedUpstream(b"small") as small,
        run_gateway(config(big, small, **limits)) as gateway,
    ):
        assert problem_of(await gateway.request(form_request(*parts)))["code"] == code
        assert not big.wires
        assert not small.wires


async def test_client_that_expects_100_gets_it_before_the_route_is_chosen() -> None:
    async with (
        NamedUpstream(b"big") as big,
        NamedUpstream(b"small") as small,
        run_gateway(config(big, small)) as gateway,
    ):
        client = await gateway.connect()
        head, _, body = form_request(MODEL, FILE).partition(b"\r\n\r\n")
        await client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert b"100 Continue" in await client.read_head()
        await client.send_all([body])
        assert split_response(await client.read_to_end())[2] == b"big"
        await client.close()


async def test_client_that_stalls_before_the_route_is_chosen_is_408() -> None:
    async with NamedUpstream(b"big") as big, NamedUpstream(b"small") as small:
        keys = config(big, small)
        keys["routes"][0]["timeouts"] = {"idle": "100ms"}
        async with run_gateway(keys) as gateway:
            client = await gateway.connect()
            await client.send(form_request(MODEL, FILE)[:150])
            assert problem_of(await client.read_to_end())["code"] == "client_idle"
            await client.close()
