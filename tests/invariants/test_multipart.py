"""multipart/form-data through a gateway: valid forms pass unchanged, malformed ones are refused, parts are counted."""

from __future__ import annotations

import pytest

from tests.invariants.test_cut import is_whole_request, read_without_response
from tests.multipart.test_reader import GOOD, MALFORMED, WELL_FORMED
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
    run_gateway,
    split_response,
)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_valid_forms_arrive_identical_in_any_chunking(framing: str) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await read_request(wire))
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        bodies = [body for body, _ in WELL_FORMED.values()]
        for body in bodies:
            request = post(body)
            head, _, _ = request.partition(b"\r\n\r\n")
            if framing == "chunked":
                head = head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked"
                response = await gateway.request(head + b"\r\n\r\n" + chunked(body[:9], body[9:]))
            else:
                response = await gateway.request(head, b"\r\n\r\n", body[:30], body[30:31], body[31:])
            assert split_response(response)[0] == 200
        assert [body for _, body in seen] == bodies
        for (head, body), _ in zip(seen, bodies, strict=True):
            assert b"Content-Type: multipart/form-data; boundary=XBOUNDARYX" in head
            if framing == "length":
                assert b"\r\nContent-Length: %d\r\n" % len(body) in head
        stats = gateway.stats.routes["r"]
        assert stats.parts["file"] == sum(name is not None for _, parts in WELL_FORMED.values() for _, name, _ in parts)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_malformed_forms_are_400_and_never_look_complete_to_the_upstream(framing: str) -> None:
    async with RawUpstream(read_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        for count, (name, body) in enumerate(MALFORMED.items(), 1):
            if not body and framing == "length":
                body = b"x"  # noqa: PLW2901 (an empty body is not a form)
            head = post(body).partition(b"\r\n\r\n")[0]
            if framing == "chunked":
                head = head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked"
                response = await gateway.request(
                    head, b"\r\n\r\n", chunked(*([body[:20], body[20:]] if len(body) > 20 else []))
                )
            else:
                response = await gateway.request(head, b"\r\n\r\n", body[:20], body[20:])
            assert problem_of(response)["code"] == "bad_multipart", name
            line = await gateway.wait_log_line(count)
            assert (line["blame"], line["upload"]) == ("client", "client_bad"), name
        for wire in upstream.wires:
            assert not is_whole_request(bytes(wire.received))


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_form_without_a_boundary_is_refused_before_the_upstream_is_connected() -> None:
    async with RawUpstream(read_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(post(GOOD, content_type="multipart/form-data"))
        assert problem_of(response)["code"] == "bad_multipart"
        assert not upstream.wires


async def test_opaque_forms_are_forwarded_without_parsing() -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    config = forward_config("http://127.0.0.1:9", forward={"multipart": "opaque"})
    async with RawUpstream(script) as upstream:
        config["upstreams"]["up"]["endpoints"] = [upstream.url]
        async with run_gateway(config) as gateway:
            broken = MALFORMED["no final boundary"]
            assert split_response(await gateway.request(post(broken)))[0] == 200
            assert seen == [broken]


async def test_form_with_too_many_parts_is_refused() -> None:
    async with RawUpstream(read_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        body = form(*[("name=a", b"")] * 20_000)
        document = problem_of(await gateway.request(post(body)))
        assert (document["code"], document["limit"]) == ("too_many_parts", 64)
