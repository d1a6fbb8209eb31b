"""An upstream's response that is not HTTP/1.1 as RFC 9112 has it is 502, and nothing of it reaches the client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import Outcome
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

GET = b"GET /a HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
FILE = 'name="f"; filename="a.bin"'

BAD_HEADS = {
    "space before the colon of Content-Length": (
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "before its colon",
    ),
    "space before the colon of Connection": (
        b"HTTP/1.1 200 OK\r\nConnection : x-a\r\nContent-Length: 2\r\n\r\nok",
        "before its colon",
    ),
    "space before the colon of Transfer-Encoding": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "before its colon",
    ),
    "control byte": (b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 2\r\n\r\nok", "control byte"),
    "NUL": (b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok", "control byte"),
    "bare CR": (b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 2\r\n\r\nok", "control byte"),
    "bare LF": (b"HTTP/1.1 200 OK\nX-A: a\nContent-Length: 2\n\nok", "ends in LF without CR"),
    "folded value": (b"HTTP/1.1 200 OK\r\nX-A: a\r\n b: c\r\nContent-Length: 2\r\n\r\nok", "folded"),
    "status 099": (b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok", "from 100 to 599"),
    "status 600": (b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nok", "from 100 to 599"),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok", "from 100 to 599"),
    "HTTP/0.9": (b"ok\r\n", "not a status line"),
    "RTSP": (b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "not a status line"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokx", "more than one Content-"),
    "length and chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "both Content-Length and Transfer-Encoding",
    ),
    "list of lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "no number"),
    "chunked in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.0 does not know",
    ),
    "name that is no token": (b"HTTP/1.1 200 OK\r\nX(A): a\r\nContent-Length: 2\r\n\r\nok", "header name and a colon"),
    "201 headers": (b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 201 + b"\r\n", "more than 200 headers"),
    "64 KiB": (b"HTTP/1.1 200 OK\r\n" + (b"X-A: " + b"a" * 9000 + b"\r\n") * 9 + b"\r\n", "more than 65536 bytes"),
    "64 KiB without an end": (b"HTTP/1.1 200 OK\r\n" + (b"X-A: " + b"a" * 9000 + b"\r\n") * 9, "more than 65536 bytes"),
    "interim with a control byte": (b"HTTP/1.1 103 Early\r\nX-A: a\x01b\r\n\r\n" + OK, "Line 2 .* control byte"),
    "interim with a body": (b"HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nok" + OK, "interim and has a body"),
    "space before a colon after an interim response": (
        b"HTTP/1.1 103 Early\r\nX-A: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "Line 2 .* before its colon",
    ),
}


def whole(head: bytes) -> list[bytes]:
    return [head]


def bytewise(head: bytes) -> list[bytes]:
    return [head[index : index + 1] for index in range(len(head))] if len(head) < 200 else [head[:20], head[20:]]


@pytest.mark.parametrize("split", [whole, bytewise])
@pytest.mark.parametrize("case", BAD_HEADS)
async def test_forwarded_response_is_refused_and_the_fault_names_what_is_wrong(
    case: str, split: Callable[[bytes], list[bytes]]
) -> None:
    head, detail = BAD_HEADS[case]

    async def respond(wire: Wire) -> None:
        await read_request(wire)
        await wire.send_all(split(head))
        await wire.read_to_end()

    async with RawUpstream(respond) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(GET)
        problem = problem_of(response)
        assert (problem["status"], problem["code"]) == (502, "bad_response")
        assert re.search(detail, problem["detail"])
        assert b"x-a" not in response.lower()
        # The connection is not used again.
        assert problem_of(await gateway.request(GET))["code"] == "bad_response"
        assert len(upstream.wires) == 2


SPACE, SPACE_DETAIL = BAD_HEADS["space before the colon of Content-Length"]


async def test_fetched_response_is_refused() -> None:
    async with RawUpstream(responding(SPACE)) as origin:
        fetch = {"allow": [origin.url], "private_networks": "allow"}
        config = {"routes": [{"name": "r", "match": {"prefix": "/"}, "fetch": fetch}]}
        async with run_gateway(config) as gateway:
            problem = problem_of(await gateway.request(GET.replace(b"/a", b"/" + origin.url.encode())))
            assert (problem["status"], problem["code"]) == (502, "bad_response")
            assert re.search(SPACE_DETAIL, problem["detail"])


async def test_split_reports_the_response_to_a_file_as_its_error() -> None:
    async with RawUpstream(responding(SPACE)) as upstream:
        route = {"name": "r", "match": {"prefix": "/"}, "split": {"upstream": "up"}}
        config: dict[str, Any] = {"upstreams": {"up": {"endpoints": [upstream.url]}}, "routes": [route]}
        async with run_gateway(config) as gateway:
            status, _, body = split_response(await gateway.request(post(form((FILE, b"data")))))
            (part,) = json.loads(body)["parts"]
            assert (status, part["status"], part["error"]["code"]) == (207, 502, "bad_response")


async def test_response_to_a_mirrored_request_is_counted_and_the_client_gets_the_other() -> None:
    async with RawUpstream(responding(OK)) as upstream, RawUpstream(responding(SPACE)) as copy:
        config = forward_config(upstream.url, forward={"mirror": {"upstream": "copy"}})
        config["upstreams"]["copy"] = {"endpoints": [copy.url]}
        async with run_gateway(config) as gateway:
            assert split_response(await gateway.request(GET))[2] == b"ok"
            await wait_until(lambda: gateway.stats.routes["r"].mirrors[Outcome.UPSTREAM_FAILED])


async def test_well_formed_response_after_interim_ones_is_passed_on_byte_by_byte() -> None:
    async def respond(wire: Wire) -> None:
        while True:
            await read_request(wire)
            response = (
                b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" + OK
            )
            await wire.send(*(response[index : index + 1] for index in range(len(response))))

    async with RawUpstream(respond) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        for _ in range(2):
            assert split_response(await gateway.request(GET))[2] == b"ok"
        assert len(upstream.wires) == 1
