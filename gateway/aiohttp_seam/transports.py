"""asyncio's transports: what they are, how much they receive per call, and when all that was written has been sent."""

from __future__ import annotations

import asyncio
import asyncio.trsock
import contextlib
import select
import socket
from asyncio import selector_events, sslproto
from collections.abc import Awaitable, Callable, Iterator
from typing import Any


def socket_of(transport: asyncio.BaseTransport | None) -> asyncio.trsock.TransportSocket | None:
    """Return the socket of a transport, None without one.

    asyncio's TLS transport raises AttributeError once it was closed twice: it has dropped what it would ask (Python
    3.11-3.13).
    """
    with contextlib.suppress(AttributeError):
        # union-attr: for None it is an AttributeError, too.
        sock: asyncio.trsock.TransportSocket | None = transport.get_extra_info("socket")  # type: ignore[union-attr]
        return sock
    return None


def is_plain_tcp(transport: asyncio.BaseTransport | None) -> bool:
    """Return whether a transport is an open TCP connection of asyncio's selector loop, without TLS.

    Only such a socket can be read and written below its transport. The class has no public name (Python 3.11-3.13).
    """
    return (
        isinstance(transport, selector_events._SelectorSocketTransport)  # type: ignore[attr-defined]  # typeshed leaves it out
        and not transport.is_closing()
        and transport.get_extra_info("socket").family in (socket.AF_INET, socket.AF_INET6)
    )


def connect_accepted(sock: socket.socket, peer: object, protocol: asyncio.Protocol) -> asyncio.Transport:
    """Return the plain transport of an accepted TCP socket, which it owns; `peer` is the address of the other end.

    `loop.connect_accepted_socket` does the same with a task, which costs 30 us more per connection (Python 3.11-3.13).
    Needs a running loop.
    """
    sock.setblocking(False)
    transport: asyncio.Transport = selector_events._SelectorSocketTransport(  # type: ignore[attr-defined]  # see above
        asyncio.get_running_loop(), sock, protocol, extra={"peername": peer}
    )
    return transport


def has_input(transport: asyncio.BaseTransport) -> bool:
    """Return whether the kernel has received something that the transport has not read: bytes, or the end."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
    return bool(poll.poll(0))


def set_receive_size(transport: asyncio.BaseTransport, size_bytes: int) -> None:
    """Set how many bytes a transport receives per call; asyncio's default is 256 KiB.

    Without effect on TLS transports. The attribute is not documented (Python 3.11-3.13); delete this when asyncio
    offers a public way.
    """
    transport.max_size = size_bytes  # type: ignore[attr-defined]  # see above


def count_unsent(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes were written that the kernel has not taken yet.

    asyncio's TLS transport does not count those that it has passed on, encrypted, to the transport of the socket.
    """
    below = _transport_below(transport)
    return transport.get_write_buffer_size() + (0 if below is None else below.get_write_buffer_size())


async def drain_write_buffer(transport: asyncio.WriteTransport, drain: Callable[[], Awaitable[None]]) -> None:
    """Wait until the write buffer of a transport is empty: the kernel has every byte written so far.

    `drain` is the protocol's own wait for `resume_writing`, which asyncio calls at the low-water mark: that is set to 0
    meanwhile. Raises what `drain` raises if the connection is lost.
    """
    if transport.get_write_buffer_size():
        with _low_water_of_0(transport):
            await drain()
    below = _transport_below(transport)
    if below is not None and below.get_write_buffer_size():
        await _drain_below(transport, below, drain)


async def _drain_below(
    transport: asyncio.WriteTransport, below: asyncio.WriteTransport, drain: Callable[[], Awaitable[None]]
) -> None:
    """Wait until the transport below TLS is empty: it resumes TLS then, and the protocol with it.

    The protocol is paused meanwhile, so that `drain` waits, and ends where the connection is lost.
    """
    tls: Any = transport._ssl_protocol  # type: ignore[attr-defined]  # of asyncio's TLS, as `_transport_below` found
    protocol, resume = tls._app_protocol, tls.resume_writing
    is_paused = True

    def resume_writing() -> None:
        nonlocal is_paused
        is_paused = False
        resume()
        protocol.resume_writing()

    protocol.pause_writing()
    tls.resume_writing = resume_writing
    try:
        with _low_water_of_0(below):
            await drain()
    finally:
        del tls.resume_writing
        if is_paused:
            # The connection was lost, or this was cancelled.
            protocol.resume_writing()


@contextlib.contextmanager
def _low_water_of_0(transport: asyncio.WriteTransport) -> Iterator[None]:
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=0)
    try:
        yield
    finally:
        transport.set_write_buffer_limits(high=high, low=low)


def _transport_below(transport: asyncio.WriteTransport) -> asyncio.WriteTransport | None:
    """Return the transport of the socket below asyncio's TLS; None without TLS, and once the connection is lost."""
    if not isinstance(transport, sslproto._SSLProtocolTransport):
        return None
    below: asyncio.WriteTransport | None = getattr(transport._ssl_protocol, "_transport", None)
    return below
