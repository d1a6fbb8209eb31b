"""fetch: what is allowed is streamed, nothing else is ever connected to."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gateway.config.url import parse_url
from gateway.errors import Fault
from gateway.upstream import AllowList
from gateway.upstream.addresses import is_public
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
        "{upstream}%00/m/a",
        "http://127.0.0.1%00:{port}/m/a",
        "http://xn--127001-:{port}/m/a",
        "http://a..b:{port}/m/a",
        "{upstream}/m/..;/x",
        "{upstream}/m/%252e%252e/x",
        "{upstream}/m/%25252e%25252e/x",
        "{upstream}/m/..%2fx",
        "{upstream}/m/..%252fx",
        "{upstream}/m/..%5Cx",
        "{upstream}/m/%2e%2e%5Cx",
        "{upstream}/m/..%09/x",
        "{upstream}/m/.%0a./x",
        "{upstream}/m\\..\\x",
        "{upstream}//m/x",
        "{upstream}/m%2fx",
    ],
)
async def test_url_that_is_not_allowed_is_403_without_a_connection(url: str) -> None:
    async with RawUpstream(responding(FILE)) as upstream, run_gateway(config(upstream.url + "/m")) as gateway:
        url = url.format(upstream=upstream.url, host=upstream.url.removeprefix("http://"), port=upstream.port)
        document = problem_of(await gateway.request(get_request(url)))
        assert (document["status"], document["code"]) == (403, "url_forbidden")
        assert not upstream.wires


@pytest.mark.parametrize("path", ["../../..", "m/..;/..;/../../x", "%252e%252e/%252e%252e/%252e%252e/x"])
async def test_url_that_climbs_out_of_the_route_is_400(path: str) -> None:
    async with RawUpstream(responding(FILE)) as upstream, run_gateway(config(upstream.url + "/")) as gateway:
        assert problem_of(await gateway.request(get_request(f"{upstream.url}/{path}")))["code"] == "bad_target"
        assert not upstream.wires


async def test_private_address_is_denied_by_default_also_for_a_host_name() -> None:
    async with RawUpstream(responding(FILE)) as upstream:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            base = f"http://{host}:{upstream.port}/"
            async with run_gateway(config(base, private="deny")) as gateway:
                assert problem_of(await gateway.request(get_request(base + "a")))["code"] == "address_forbidden"
        assert not upstream.wires


PRIVATE_HOSTS = [
    "127.0.0.1",
    "127.0.0.1.",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "0",
    "127.0.0.%31",
    "%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1",
    "127%E3%80%820%E3%80%820%E3%80%821",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::1%25lo]",
    "10.0.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[3fff::1]",
]


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
async def test_address_that_denotes_a_private_network_is_403_without_a_connection(host: str) -> None:
    async with RawUpstream(responding(FILE)) as upstream:
        base = f"http://{host}:{upstream.port}/"
        async with run_gateway(config(base, private="deny")) as gateway:
            document = problem_of(await gateway.request(get_request(base + "a")))
            assert (document["status"], document["code"]) == (403, "address_forbidden")
        assert not upstream.wires


async def test_host_with_a_final_dot_is_the_same_host() -> None:
    async with RawUpstream(responding(FILE)) as upstream, run_gateway(config(upstream.url)) as gateway:
        response = await gateway.request(get_request(f"http://127.0.0.1.:{upstream.port}/a"))
        assert split_response(response)[2] == b"file"
        assert f"Host: 127.0.0.1:{upstream.port}\r\n".encode() in upstream.received
    async with RawUpstream(responding(FILE)) as upstream:
        async with run_gateway(config(f"http://localhost:{upstream.port}/")) as gateway:
            response = await gateway.request(get_request(f"http://localhost.:{upstream.port}/a"))
            assert split_response(response)[2] == b"file"


async def test_name_with_a_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def mixed(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host != "models.example":
            return real(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", mixed)
    async with run_gateway(config("http://models.example/", private="deny")) as gateway:
        document = problem_of(await gateway.request(get_request("http://models.example/a")))
        assert document["code"] == "address_forbidden"


@pytest.mark.parametrize(
    ("location", "code"),
    [
        (b"http://[", "bad_redirect"),
        (b"http://[::1", "bad_redirect"),
        (b"http://a b/", "bad_redirect"),
        (b"/m\tx", "bad_redirect"),
        (b"\\\\evil.example/", "bad_redirect"),
        (b"/m/\xe4", "bad_redirect"),
        (b"ftp://x/", "bad_redirect"),
        (b"http://x%00/", "bad_redirect"),
        (b"http://xn--127001-/", "bad_redirect"),
        (b"/m/..;/x", "bad_redirect"),
        (b"/m/%252e%252e/x", "bad_redirect"),
        (b"http://2852039166/latest/meta-data", "address_forbidden"),
        (b"http://[fd00:ec2::254]/latest", "address_forbidden"),
    ],
)
async def test_redirect_to_no_url_or_a_private_address_is_refused(
    location: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin's own address counts as public, and any other as what it is."""
    monkeypatch.setattr(
        "gateway.upstream.guard.is_public", lambda address: address == "127.0.0.1" or is_public(address)
    )
    response = b"HTTP/1.1 302 F\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    async with (
        RawUpstream(responding(response)) as upstream,
        run_gateway(config(upstream.url + "/m/", private="deny")) as gateway,
    ):
        assert problem_of(await gateway.request(get_request(upstream.url + "/m/a")))["code"] == code
        assert len(upstream.wires) == 1


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


def test_allow_list_compares_whole_segments_and_default_ports() -> None:
    allowed = AllowList(["https://models.example/a/", "http://x.example:8080"])
    for url in ("https://models.example/a/b", "https://MODELS.example:443/a/b?c", "http://x.example:8080/"):
        allowed.check(parse_url(url))
    for url in ("https://models.example/ab", "https://models.example:444/a/b", "http://x.example/"):
        with pytest.raises(Fault):
            allowed.check(parse_url(url))
