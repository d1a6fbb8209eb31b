"""TLS handshakes: bounded in time and number, so that clients that stall in theirs keep no others out.

Each counts as a connection, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.downstream.handshakes import Handshakes
from gateway.transfer import Turns
from gateway.transfer.turns import TURN_SECONDS
from tests.aiohttp_seam.peers import settle
from tests.bench.load import make_certificate
from tests.clock import Clock
from tests.downstream.test_acceptor import accepting, expected_pause, queued_clients
from tests.peers import OK, RawUpstream, RunningGateway, Wire, forward_config, responding, run_gateway, wait_until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def connect_with_tls(port: int, certificate: Path) -> Wire:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    return Wire(*await asyncio.open_connection("127.0.0.1", port, ssl=context))


def context_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@contextlib.asynccontextmanager
async def run_tls_gateway(certificate: Path, **top: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway with TLS, these top-level keys, and an upstream that responds with OK."""
    tls = {"certificate": str(certificate), "key": str(certificate)}
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"tls": tls, **top})) as gateway:
            yield gateway


async def test_client_that_stalls_in_its_handshake_is_disconnected(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.downstream.handshakes.HANDSHAKE_SECONDS", 0.05)
    async with run_tls_gateway(certificate) as gateway:
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
    async with run_tls_gateway(certificate) as gateway:
        stalled = [await gateway.connect() for _ in range(10)]
        honest = await connect_with_tls(gateway.port, certificate)
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
    async with run_tls_gateway(certificate) as gateway:
        acceptor = gateway.gateway._acceptor
        begun = [await gateway.connect() for _ in range(2)]
        await wait_until(lambda: acceptor.handshake_count == 2)
        waiting = asyncio.create_task(connect_with_tls(gateway.port, certificate))
        await wait_until(lambda: not acceptor._is_reading)
        await begun[0].close()
        await (await waiting).close()
        await begun[1].close()


@expected_pause
async def test_handshakes_count_as_connections(certificate: Path) -> None:
    """Clients that stall in theirs were accepted without a limit: 60 of 10."""
    async with run_tls_gateway(certificate, max_connections=10) as gateway:
        clients = [await gateway.connect() for _ in range(30)]
        await wait_until(lambda: gateway.gateway.connection_count >= 10)
        await settle()
        assert gateway.gateway.connection_count == 10
        for client in clients:
            await client.close()


@expected_pause
async def test_handshakes_that_stall_hold_no_place_that_another_client_needs(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers they kept all others out for 10 s."""
    monkeypatch.setattr("gateway.downstream.handshakes.STALLED_SECONDS", 0.02)
    async with run_tls_gateway(certificate, max_connections=2) as gateway:
        stalled = [await gateway.connect() for _ in range(2)]
        await wait_until(lambda: gateway.gateway.connection_count == 2)
        honest = await connect_with_tls(gateway.port, certificate)
        assert await stalled[0].read_to_end() == b""
        await wait_until(lambda: gateway.gateway._traffic.open_connections == 1)
        # One client needs one place.
        assert gateway.gateway._acceptor.handshake_count == 1
        for client in (*stalled, honest):
            await client.close()


async def test_iteration_of_the_loop_works_on_a_few_of_the_hellos_that_arrive_together(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """120 hellos held one iteration for 107 ms."""
    tls = {"certificate": str(certificate), "key": str(certificate)}
    # Later than any time that the gateway has taken.
    clock, steps = Clock(asyncio.get_running_loop().time() + 60.0), 0
    do_handshake = ssl.SSLObject.do_handshake
    hellos = [client_hello() for _ in range(40)]

    def count_step(self: ssl.SSLObject) -> None:
        nonlocal steps
        steps += 1
        clock.now += TURN_SECONDS / 4
        do_handshake(self)

    async with run_gateway(forward_config("http://127.0.0.1:9", top={"tls": tls})) as gateway:
        clients = [await gateway.connect() for _ in hellos]
        await wait_until(lambda: gateway.gateway._acceptor.handshake_count == len(hellos))
        await settle()
        monkeypatch.setattr(gateway.gateway._timers.turns, "_clock", clock)
        monkeypatch.setattr(ssl.SSLObject, "do_handshake", count_step)
        for client, hello in zip(clients, hellos, strict=True):
            client.writer.write(hello)
        most = 0
        while steps < len(hellos):
            before = steps
            # One iteration of the loop, in which steps are counted.
            await asyncio.sleep(0)
            most = max(most, steps - before)
        # An interval may begin within an iteration.
        assert most <= 2 * 4
        for client in clients:
            await client.close()


def client_hello() -> bytes:
    """Return what a client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_handshakes_do_not_count_twice_when_they_end(certificate: Path) -> None:
    async with queued_clients(0) as (listener, _), accepting(listener, context=context_of(certificate)) as connections:
        port = listener.getsockname()[1]
        clients = [asyncio.create_task(connect_with_tls(port, certificate)) for _ in range(5)]
        while connections.accepted < 5:
            # In each iteration of the loop: the count must be right in the one in which the last is accepted, too.
            await asyncio.sleep(0)
            assert connections.acceptor.connection_count == connections.made
        for client in await asyncio.gather(*clients):
            await client.close()
        await wait_until(lambda: not connections.acceptor.connection_count)


class Handshaking:
    """The handshakes of connections whose clients send nothing, and how many failed."""

    def __init__(self, certificate: Path) -> None:
        self.failed_count = 0
        self.protocols: list[asyncio.Protocol] = []
        self.handshakes = Handshakes(
            context_of(certificate), self._make_protocol, Turns(), on_room=lambda: None, on_failure=self._fail
        )

    def begin(self) -> socket.socket:
        """Begin one; return the socket of its client."""
        client, server = socket.socketpair()
        self.handshakes.begin(server)
        return client

    def _make_protocol(self) -> asyncio.Protocol:
        self.protocols.append(asyncio.Protocol())
        return self.protocols[-1]

    def _fail(self) -> None:
        self.failed_count += 1


@contextlib.asynccontextmanager
async def cut_handshake(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Handshaking, socket.socket]]:
    """Begin a handshake and cut it; yield it, before it has ended, with the socket of its client."""
    monkeypatch.setattr("gateway.downstream.handshakes.STALLED_SECONDS", 0.0)
    handshaking = Handshaking(certificate)
    with handshaking.begin() as client:
        await settle()
        assert handshaking.handshakes.make_room()
        yield handshaking, client


async def test_handshake_that_ends_as_it_is_cut_is_reported_once(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection was lost, and its handshake failed as well: workers counted one too few."""
    async with cut_handshake(certificate, monkeypatch) as (handshaking, client):
        # Until the task is cancelled, in the next turn of the loop, the protocol may be connected.
        handshaking.handshakes.connection_made(handshaking.protocols[0])
        client.settimeout(None)
        await asyncio.to_thread(client.recv, 1)
        assert handshaking.failed_count == 0
        assert len(handshaking.handshakes) == 0


async def test_handshake_that_is_cut_counts_until_its_socket_is_closed_and_is_cut_once(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cut_handshake(certificate, monkeypatch) as (handshaking, client):
        assert not handshaking.handshakes.make_room()
        assert len(handshaking.handshakes) == 1
        await wait_until(lambda: not handshaking.handshakes)
        assert client.recv(1) == b""
        assert handshaking.failed_count == 1


async def test_handshake_that_is_cut_before_it_runs_closes_its_socket(certificate: Path) -> None:
    handshaking = Handshaking(certificate)
    with handshaking.begin() as client:
        await handshaking.handshakes.close()
        assert client.recv(1) == b""
        assert handshaking.failed_count == 1
