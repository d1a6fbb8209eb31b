"""forward: methods, bodies and responses; which headers are added, kept and removed."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    forward_config,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
)


def build_request(method: str = "GET", target: str = "/", headers: str = "", body: bytes = b"") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: gw.example:8080\r\nConnection: close\r\n{headers}\r\n".encode() + body


def headers_of(received: bytes) -> dict[str, list[str]]:
    """Return the headers of the first request by lower-case name, in order."""
    headers: dict[str, list[str]] = {}
    for line in received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    return headers


async def send(request: bytes, **config: Any) -> tuple[bytes, bytes]:
    """Send a request through a gateway; return the bytes that the upstream and the client received."""
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url, **config)) as gateway:
        response = await gateway.request(request)
        return upstream.received, response


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "POST", "PROPFIND"])
async def test_any_method_is_forwarded_with_its_body(method: str) -> None:
    reply = OK.removesuffix(b"ok") if method == "HEAD" else OK
    async with RawUpstream(responding(reply)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(build_request(method, "/x", "Content-Length: 3\r\n", b"abc"))
        assert upstream.received.startswith(f"{method} /x HTTP/1.1\r\nHost: gw.example:8080\r\n".encode())
        assert upstream.received.endswith(b"\r\n\r\nabc")
        status, headers, body = split_response(response)
        assert (status, headers["content-length"]) == (200, "2")
        assert body == (b"" if method == "HEAD" else b"ok")


async def test_response_keeps_its_status_reason_headers_and_order() -> None:
    reply = b"HTTP/1.1 207 Many Things\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 2\r\n\r\nok"
    async with RawUpstream(responding(reply)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(build_request())
        assert response.startswith(b"HTTP/1.1 207 Many Things\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\nDate: ")
        assert b"\r\nVia: 1.1 streaming-gateway\r\n" in response


async def test_forwarding_headers_of_an_untrusted_client_are_written_anew() -> None:
    spoofed = (
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\n"
        "X-Request-Id: mine\r\ntraceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01\r\ntracestate: x=y\r\n"
    )
    headers = headers_of((await send(build_request(headers=spoofed)))[0])
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == ["gw.example:8080"]
    assert headers["forwarded"] == ['for=127.0.0.1;host="gw.example:8080";proto=http']
    assert headers["x-request-id"] != ["mine"]
    assert "a" * 32 not in headers["traceparent"][0]
    assert "tracestate" not in headers


async def test_forwarding_headers_of_a_trusted_proxy_are_extended() -> None:
    sent_headers = (
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: real\r\nForwarded: for=6.6.6.6\r\n"
        "X-Request-Id: mine\r\ntraceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-00\r\ntracestate: x=y\r\n"
    )
    received, response = await send(build_request(headers=sent_headers), top={"trusted_proxies": ["127.0.0.0/8"]})
    headers = headers_of(received)
    assert headers["x-forwarded-for"] == ["6.6.6.6, 127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["https"]
    assert headers["x-forwarded-host"] == ["real"]
    assert headers["forwarded"][0].startswith("for=6.6.6.6, for=127.0.0.1;")
    assert headers["x-request-id"] == ["mine"]
    assert split_response(response)[1]["x-request-id"] == "mine"
    _, trace, span, flags = headers["traceparent"][0].split("-")
    assert (trace, flags) == ("a" * 32, "00")
    assert span != "b" * 16
    assert headers["tracestate"] == ["x=y"]


@pytest.mark.parametrize(
    "value", ["00-" + "0" * 32 + "-" + "b" * 16 + "-01", "junk", "01-" + "a" * 32 + "-" + "b" * 16 + "-01"]
)
async def test_invalid_traceparent_begins_a_new_trace(value: str) -> None:
    received, _ = await send(build_request(headers=f"traceparent: {value}\r\n"), top={"trusted_proxies": ["127.0.0.1"]})
    assert headers_of(received)["traceparent"][0].split("-")[1] not in value


async def test_host_header_names_the_endpoint_if_configured() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, forward={"host": "upstream"})) as gateway:
            await gateway.request(build_request())
            headers = headers_of(upstream.received)
            assert headers["host"] == [f"127.0.0.1:{upstream.port}"]
            assert headers["x-forwarded-host"] == ["gw.example:8080"]


@pytest.mark.parametrize(
    ("match", "rewrite", "target", "expected"),
    [
        ({"path": "/v1/t"}, "/t", "/v1/t?a=b", "/t?a=b"),
        ({"prefix": "/v1"}, "/", "/v1/x/y", "/x/y"),
        ({"prefix": "/v1"}, "/", "/v1", "/"),
        ({"prefix": "/v1/"}, "/api", "/v1/x", "/api/x"),
        ({"prefix": "/v1"}, "/api/", "/v1/x%2Fy/", "/api/x%2Fy/"),
        ({"prefix": "/v1"}, "/api", "/%76%31/x", "/api/x"),
        ({"regex": r"/m/(\w+)/run"}, r"/run/\1", "/m/whisper/run?q", "/run/whisper?q"),
        ({"prefix": "/"}, "/api", "/x", "/api/x"),
    ],
)
async def test_target_is_rewritten(match: dict[str, str], rewrite: str, target: str, expected: str) -> None:
    received, _ = await send(build_request(target=target), match=match, forward={"rewrite": rewrite})
    assert received.startswith(f"GET {expected} HTTP/1.1".encode())


async def test_compressed_bodies_pass_unchanged_in_both_directions() -> None:
    compressed = b"\x1f\x8b\x08not really gzip"
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 18\r\n\r\n" + compressed)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        headers = f"Content-Encoding: gzip\r\nContent-Length: {len(compressed)}\r\n"
        _, _, body = split_response(await gateway.request(build_request("POST", headers=headers, body=compressed)))
        assert seen == [compressed]
        assert body == compressed


async def test_events_are_sent_one_by_one() -> None:
    event_read = asyncio.Queue[None]()

    async def events(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            await event_read.get()
            await wire.send(b"data: %d\n\n" % number)
        await wire.close()

    async with RawUpstream(events) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(build_request())
        await client.read_head()
        for number in range(3):
            event_read.put_nowait(None)
            await client.read_until(b"data: %d\n\n" % number)
        await client.read_to_end()
        await client.close()


async def test_head_of_an_upload_is_sent_before_its_body() -> None:
    """aiohttp's client sends the head with the first chunk, so an upstream could not refuse before the body arrives."""
    async with RawUpstream(lambda wire: wire.read_head()) as upstream:  # type: ignore[arg-type, return-value]  # result unused
        async with run_gateway(forward_config(upstream.url)) as gateway:
            client = await gateway.connect()
            await client.send(build_request("POST", headers="Content-Length: 5\r\n"))
            await upstream.wait_finished()
            assert upstream.received.startswith(b"POST / HTTP/1.1\r\n")
            await client.close()
            await gateway.wait_log_line()


async def test_connections_are_kept_on_both_sides() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        for _ in range(5):
            await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 3\r\n\r\nabc")
            await client.read_head()
            assert await client.read_exactly(2) == b"ok"
        await client.close()
        assert len(upstream.wires) == 1


async def test_host_name_without_an_address_is_502_and_names_the_upstream_and_the_key() -> None:
    async with run_gateway(forward_config("http://no-such-host.invalid:80")) as gateway:
        document = problem_of(await gateway.request(build_request()))
        assert (document["status"], document["code"], document["upstream"]) == (502, "dns_error", "up")
        assert "upstream 'up'" in document["detail"]
        assert "upstreams.up.endpoints" in document["detail"]
        assert "no-such-host" not in document["detail"]
        line = await gateway.wait_log_line()
        assert line["endpoint"] == "http://no-such-host.invalid:80"
        assert line["reason"].startswith("no-such-host.invalid:80: ")


async def test_refused_connection_names_the_upstream_and_the_key_and_only_the_log_has_the_address() -> None:
    with socket.socket() as taken:
        # Bound and not listening: the kernel refuses connections.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with run_gateway(forward_config(f"http://localhost:{port}")) as gateway:
            response = await gateway.request(build_request())
            document = problem_of(response)
            assert (document["code"], document["upstream"]) == ("connect_refused", "up")
            assert "Upstream 'up' cannot be connected (Connection refused)" in document["detail"]
            assert "upstreams.up.endpoints" in document["detail"]
            assert b"127.0.0.1" not in response
            assert str(port).encode() not in response
            line = await gateway.wait_log_line()
            assert line["endpoint"] == f"http://localhost:{port}"
            assert f"('127.0.0.1', {port})" in line["reason"]


async def test_tls_to_a_plain_upstream_is_502() -> None:
    async def plain(wire: Wire) -> None:
        await wire.read_some()
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await wire.close()

    async with RawUpstream(plain) as upstream:
        async with run_gateway(forward_config(upstream.url.replace("http:", "https:"))) as gateway:
            assert problem_of(await gateway.request(build_request()))["status"] == 502


async def test_problem_document_states_code_route_and_request_id() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        response = await gateway.request(build_request())
        status, headers, body = split_response(response)
        document = json.loads(body)
        assert status == document["status"] == 502
        assert set(document) == {"title", "status", "detail", "code", "route", "upstream", "request_id"}
        assert document["route"] == "r"
        assert document["request_id"] == headers["x-request-id"]
        assert headers["proxy-status"].startswith("streaming-gateway; error=connection_refused; details=")
        assert "127.0.0.1" not in body.decode()


@pytest.mark.interpreted(reason="replaces a function")
@pytest.mark.expected_log("gateway", "bug in", reason="a bug is logged with its traceback")
async def test_bug_in_the_gateway_is_500_without_the_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(*_: object) -> None:
        raise RuntimeError("secret detail")

    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        monkeypatch.setattr("gateway.actions.request_head.request_lines", raise_error)
        response = await gateway.request(build_request())
        assert problem_of(response)["code"] == "bug"
        assert b"secret" not in response
        assert (await gateway.wait_log_line())["blame"] == "gateway"
