"""A loop that is busy with other bodies: what waits for its turn is neither lost nor overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.transfer import Turns
from tests.peers import OK, RawUpstream, Wire, chunked, form, forward_config, read_request, run_gateway, split_response

#: Longer than an exchange needs to begin to read its body.
BUSY_SECONDS = 0.02


@pytest.fixture
def busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no body take a step at once, and have each turn come late."""

    def call_late(_: Turns, step: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(BUSY_SECONDS, step)

    monkeypatch.setattr(Turns, "has_time", lambda _: False)
    monkeypatch.setattr(Turns, "call", call_late)


@pytest.mark.usefixtures("busy_loop")
@pytest.mark.parametrize("forward", [{}, {"body": "raw"}, {"multipart": "strict"}, {"multipart": "opaque"}], ids=str)
async def test_chunked_body_that_waits_for_its_turn_arrives_whole(forward: dict[str, str]) -> None:
    """Its rest was read below the transport, and what had waited was skipped: 400 bad_framing, or 408 client_idle."""
    data = b"0123456789" * 3000
    body = form(('name="f"; filename="a"', data))
    head = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n\r\n"
    received: list[bytes] = []

    async def script(wire: Wire) -> None:
        received.append((await read_request(wire))[1])
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        settings = forward_config(upstream.url, forward=forward, timeouts={"idle": "1s"})
        async with run_gateway(settings) as gateway:
            # In one segment: the beginning of the body is here when the exchange begins.
            response = await gateway.request(head + chunked(body[:100], body[100:20_000], body[20_000:]))
            assert split_response(response)[0] == 200
    assert data in received[0]
