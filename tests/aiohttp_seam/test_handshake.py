"""TLS with clients: the steps of a handshake wait for their turns, and lose nothing meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.aiohttp_seam import connect_accepted_tls
from tests.aiohttp_seam.peers import settle
from tests.certificates import Certificate


class HeldTurns:
    """Turns without time: a step is taken when the test says so."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def has_time_for_event(self) -> bool:
        return False

    def is_time_left(self) -> bool:
        return True

    def call(self, step: Callable[[], None], /) -> None:
        self.steps.append(step)

    async def take(self) -> None:
        """Take the only step that waits, and let what it sends arrive."""
        (step,) = self.steps
        self.steps.clear()
        step()
        await settle()


class Handshake:
    """A client in its handshake; `client` is its socket, `tls` its end of TLS."""

    def __init__(self, certificate: Certificate) -> None:
        self.turns = HeldTurns()
        self.client, self.server = socket.socketpair()
        self.client.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = certificate.client_context()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.received = bytearray()
        received = self.received

        class Recorder(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                received.extend(data)

        connecting = connect_accepted_tls(
            self.server, Recorder(), certificate.server_context(), turns=self.turns, handshake_seconds=10.0
        )
        self.connecting = asyncio.ensure_future(connecting)

    async def shake(self, data: bytes = b"") -> None:
        """Work on what the server sent; send the next step of the handshake, and data after it if it is the last."""
        with contextlib.suppress(BlockingIOError):
            self._incoming.write(self.client.recv(2**16))
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.tls.write(data)
        self.client.send(self._outgoing.read())
        await settle()


@pytest.fixture
async def handshake(certificate: Certificate) -> AsyncIterator[Handshake]:
    made = Handshake(certificate)
    await settle()
    with made.client:
        yield made
    made.connecting.cancel()
    await asyncio.gather(made.connecting, return_exceptions=True)
    await settle()


async def test_each_step_of_a_handshake_waits_for_its_turn(handshake: Handshake) -> None:
    assert not handshake.turns.steps
    await handshake.shake()
    with pytest.raises(BlockingIOError):
        handshake.client.recv(1)
    await handshake.turns.take()
    await handshake.shake(b"request")
    assert not handshake.connecting.done()
    await handshake.turns.take()
    await handshake.connecting
    assert handshake.received == b"request"


async def test_no_more_than_one_receive_is_taken_while_a_handshake_waits(handshake: Handshake) -> None:
    """The rest stays in the kernel."""
    await handshake.shake()
    for _ in range(2):
        handshake.client.send(b"x")
        await settle()
    handshake.client.send(b"rest")
    await settle()
    assert select.select([handshake.server], [], [], 0)[0]
    assert len(handshake.turns.steps) == 1


async def test_client_that_ends_while_its_handshake_waits_is_read_to_its_end(handshake: Handshake) -> None:
    """Its request came before the end."""
    await handshake.shake()
    await handshake.turns.take()
    await handshake.shake(b"request")
    handshake.client.shutdown(socket.SHUT_WR)
    await settle()
    await handshake.turns.take()
    await handshake.connecting
    assert handshake.received == b"request"


async def test_handshake_that_is_cut_while_it_waits_takes_no_step(handshake: Handshake) -> None:
    await handshake.shake()
    handshake.connecting.cancel()
    await settle()
    await handshake.turns.take()
    assert handshake.client.recv(1) == b""
