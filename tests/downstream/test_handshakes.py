"""TLS handshakes: bounded in time and number, so that clients that stall in theirs keep no others out."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.bench.load import make_certificate
from tests.peers import OK, RawUpstream, RunningGateway, Wire, forward_config, responding, run_gateway, wait_until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def connect_with_tls(gateway: RunningGateway, certificate: Path) -> Wire:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    return Wire(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context))


async def test_client_that_stalls_in_its_handshake_is_disconnected(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.downstream.handshakes.HANDSHAKE_SECONDS", 0.05)
    tls = {"certificate": str(certificate), "key": str(certificate)}
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"tls": tls})) as gateway:
            client = await gateway.connect()
            # The beginning of a record that never ends.
            await client.send(b"\x16\x03\x01")
            assert await client.read_to_end() == b""
            await client.close()


async def test_clients_that_stall_in_their_handshakes_keep_no_others_out(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.downstream.handshakes.MAX_HANDSHAKES", 2)
    monkeypatch.setattr("gateway.downstream.handshakes.STALLED_SECONDS", 0.02)
    tls = {"certificate": str(certificate), "key": str(certificate)}
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"tls": tls})) as gateway:
            stalled = [await gateway.connect() for _ in range(10)]
            honest = await connect_with_tls(gateway, certificate)
            await honest.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            assert (await honest.read_until(b"ok")).endswith(b"ok")
            assert gateway.gateway._acceptor.handshake_count <= 2
            # Each made room for another.
            assert await stalled[0].read_to_end() == b""
            for client in (*stalled, honest):
                await client.close()


async def test_number_of_handshakes_is_bounded_while_none_stalls(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.downstream.handshakes.MAX_HANDSHAKES", 2)
    tls = {"certificate": str(certificate), "key": str(certificate)}
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"tls": tls})) as gateway:
            acceptor = gateway.gateway._acceptor
            begun = [await gateway.connect() for _ in range(2)]
            await wait_until(lambda: acceptor.handshake_count == 2)
            waiting = asyncio.create_task(connect_with_tls(gateway, certificate))
            await wait_until(lambda: not acceptor._is_reading)
            await begun[0].close()
            await (await waiting).close()
            await begun[1].close()
