"""fetch: what is allowed is streamed, nothing else is ever connected to."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gateway.errors import Fault
from gateway.upstream import AllowList
from gateway.upstream.guard import is_public
from tests.peers import RawUpstream, Wire, problem_of, responding, run_gateway, split_response

FILE = b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nSet-Cookie: a=b\r\nETag: "e"\r\n\r\nfile'


def config(*allow: str, private: str = "allow") -> dict[str, Any]:
    fetch = {"allow": list(allow), "private_networks": private}
    return {"routes": [{"name": "g", "match": {"prefix": "/fetch/"}, "fetch": fetch}]}


def get_request(url: str, headers: str = "") -> bytes:
    return f"GET /fetch/{url} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{headers}\r\n".encode()


async def test_allowed_url_is_streamed_with_its_query_ranges_and_validators() -> None:
    async with (
        RawUpstream(responding(FILE.replace(b"200 OK", b"206 Part"))) as upstream,
        run_gateway(config(upstream.url + "/m/")) as gateway,
    ):
        headers = 'Range: bytes=0-3\r\nIf-Range: "e"\r\nCookie: secret\r\nAuthorization: secret\r\nX-Any: secret\r\n'
        status, got, body = split_response(
            await gateway.request(get_request(upstream.url + "/m/a%20b.bin?x=%2F", headers))
        )
        assert (status, body, got["etag"]) == (206, b"file", '"e"')
        assert "set-cookie" not in got
        assert upstream.received.startswith(b"GET /m/a%20b.bin?x=%2F HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"Range: bytes=0-3" in upstream.received
        assert b"secret" not in upstream.received


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/m/a",
        "{upstream}/other",
        "{upstream}/mm",
        "{upstream}/m/../secret",
        "{upstream}/m/%2e%2e/secret",
        "{upstream}/m/..%5csecret",
        "http://user@{host}/m/a",
        "https://{host}/m/a",
        "ftp://{host}/m/a",
        "file:///etc/passwd",
        "127.0.0.1/m/a",
        "",
        "http:///m/a",
        "http://[::1/m/a",
    ],
)
async def test_url_that_is_not_allowed_is_403_without_a_connection(url: str) -> None:
    async with RawUpstream(responding(FILE)) as upstream, run_gateway(config(upstream.url + "/m")) as gateway:
        url = url.format(upstream=upstream.url, host=upstream.url.removeprefix("http://"))
        assert problem_of(await gateway.request(get_request(url)))["code"] == "url_forbidden"
        assert not upstream.wires


async def test_private_address_is_denied_by_default_also_for_a_host_name() -> None:
    async with RawUpstream(responding(FILE)) as upstream:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            base = f"http://{host}:{upstream.port}/"
            async with run_gateway(config(base, private="deny")) as gateway:
                assert problem_of(await gateway.request(get_request(base + "a")))["code"] == "address_forbidden"
        assert not upstream.wires


async def test_address_of_a_host_name_is_checked_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: the name is public when it is looked at, and private when it is used."""
    real = socket.getaddrinfo

    def rebound(host: str, port: int, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "models.example" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    async with RawUpstream(responding(FILE)) as upstream:
        base = f"http://models.example:{upstream.port}/"
        async with run_gateway(config(base, private="deny")) as gateway:
            assert problem_of(await gateway.request(get_request(base + "a")))["code"] == "address_forbidden"
        async with run_gateway(config(base)) as gateway:
            assert split_response(await gateway.request(get_request(base + "a")))[2] == b"file"


async def test_redirect_to_an_allowed_url_is_followed_and_any_other_is_refused() -> None:
    async def script(wire: Wire) -> None:
        while True:
            head = await wire.read_head()
            if b"GET /m/hop " in head:
                await wire.send(b"HTTP/1.1 302 F\r\nLocation: /m/file\r\nContent-Length: 0\r\n\r\n")
            elif b"GET /m/out " in head:
                await wire.send(
                    b"HTTP/1.1 302 F\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n"
                )
            elif b"GET /m/loop " in head:
                await wire.send(b"HTTP/1.1 302 F\r\nLocation: /m/loop\r\nContent-Length: 0\r\n\r\n")
            else:
                await wire.send(FILE)

    async with RawUpstream(script) as upstream, run_gateway(config(upstream.url + "/m/")) as gateway:
        assert split_response(await gateway.request(get_request(upstream.url + "/m/hop")))[2] == b"file"
        for path in ("out", "loop"):
            document = problem_of(await gateway.request(get_request(f"{upstream.url}/m/{path}")))
            assert (document["status"], document["code"]) == (502, "bad_redirect")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fd00:ec2::254",
    ],
)
def test_private_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_global_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_allow_list_compares_whole_segments_and_default_ports() -> None:
    allowed = AllowList(["https://models.example/a/", "http://x.example:8080"])
    for url in ("https://models.example/a/b", "https://MODELS.example:443/a/b?c", "http://x.example:8080/"):
        allowed.check(url)
    for url in ("https://models.example/ab", "https://models.example:444/a/b", "http://x.example/"):
        with pytest.raises(Fault):
            allowed.check(url)
