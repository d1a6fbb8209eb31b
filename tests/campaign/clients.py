"""The client of a plan."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

from tests.campaign.judge import whole_response
from tests.campaign.plans import ClientFault, Plan
from tests.certificates import Certificate
from tests.peers import Wire

_PIECE_BYTES = 65_536
_PAUSE_SECONDS = 0.01
_REFUSED = (ClientFault.STALL, ClientFault.BAD_HEAD, ClientFault.BAD_CHUNK)
#: Longer than every timeout of the gateway: an exchange without an end by then hangs.
HANG_SECONDS = 12.0


class HungError(Exception):
    """An exchange did not end."""


async def run_client(plan: Plan, port: int, generator: random.Random, certificate: Certificate | None = None) -> None:
    """Send the request of a plan, with its fault, and receive what comes. Raises HungError."""
    context = certificate.client_context() if certificate is not None else None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20, ssl=context)
    except OSError:
        # Out of descriptors, which it shares with the gateway.
        return
    wire = Wire(reader, writer)
    try:
        async with asyncio.timeout(HANG_SECONDS):
            await _exchange(plan, wire, generator)
    except TimeoutError:
        raise HungError(f"{plan.path}, client: {plan.client.value}, upstream: {plan.upstream.value}") from None
    finally:
        if plan.client is ClientFault.RESET:
            wire.reset()
        if context is not None:
            # With its close_notify, but not waiting for the gateway's.
            writer.close()
            writer.transport.abort()
        await wire.close()


async def _exchange(plan: Plan, wire: Wire, generator: random.Random) -> None:
    sent = plan.head + plan.body
    end = plan.at if plan.client in (ClientFault.RESET, ClientFault.HALF_CLOSE, ClientFault.STALL) else len(sent)
    reading = asyncio.create_task(_receive(plan, wire), name="read")
    try:
        plan.is_sent = await _send(plan, wire, sent[:end]) and end == len(sent)
        if plan.client is ClientFault.HALF_CLOSE:
            with contextlib.suppress(OSError):
                # Not `write_eof`, which TLS has not: there it is an end without close_notify.
                wire.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        if plan.client is ClientFault.RESET or plan.client is ClientFault.LEAVE:
            await asyncio.sleep(generator.choice([0, 0.005, 0.03]))
            return
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _send(plan: Plan, wire: Wire, data: bytes) -> bool:
    """Send in pieces; return whether all of it was taken."""
    is_slow = plan.client is ClientFault.TRICKLE
    size = max(len(data) // 6, 1) if is_slow else _PIECE_BYTES
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    for piece in pieces:
        try:
            wire.writer.write(piece)
            await wire.writer.drain()
        except OSError:
            return False
        if is_slow:
            await asyncio.sleep(_PAUSE_SECONDS)
    return True


async def _receive(plan: Plan, wire: Wire) -> None:
    try:
        while data := await wire.reader.read(2**16):
            plan.response += data
            if plan.client in _REFUSED and _is_whole(plan):
                # Over TLS, which cannot close one side, the gateway waits for the rest of the request before it closes.
                return
            if plan.client is ClientFault.SLOW_READ:
                await asyncio.sleep(_PAUSE_SECONDS)
    except OSError:
        plan.was_reset = True


def _is_whole(plan: Plan) -> bool:
    try:
        return whole_response(plan) is not None
    except ValueError:
        return True
