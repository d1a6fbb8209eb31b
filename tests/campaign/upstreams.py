"""The upstream of all plans: it finds the plan of a request by its X-Request-Id, or by the path for `fetch`."""

from __future__ import annotations

import asyncio
import random
import re
import socket

from tests.campaign.plans import Plan, UpstreamFault
from tests.certificates import Certificate
from tests.peers import Wire

BIG = b"big response." * 40_000
SMALL = b"ok"
EARLY = b"early"
#: The bodies that a client may receive whole.
WHOLE = frozenset({SMALL, BIG, EARLY, b"abc", b"to the end", b"failed"})
_ID = re.compile(rb"plan-(\d+)")
_STALL_SECONDS = 30.0
_NO_NOTIFY_SHARE = 0.5
_OK = b"HTTP/1.1 200 OK\r\n"
_SIZED = _OK + b"Content-Length: 2\r\n\r\nok"
#: Sent after the whole request; the connection is kept.
_KEEPING = {
    UpstreamFault.NONE: _SIZED,
    UpstreamFault.CHUNKED: _OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    UpstreamFault.BIG: _OK + b"Content-Length: %d\r\n\r\n" % len(BIG) + BIG,
    UpstreamFault.INTERIM: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + _SIZED,
    UpstreamFault.ERROR: b"HTTP/1.1 500 No\r\nContent-Length: 6\r\n\r\nfailed",
    UpstreamFault.SECOND_RESPONSE: _SIZED + _OK + b"Content-Length: 4\r\n\r\nevil",
}
#: Sent after the whole request; then the connection is closed.
_CLOSING = {
    UpstreamFault.CLOSE_DELIMITED: _OK + b"\r\nto the end",
    UpstreamFault.CUT_UNSIZED: _OK + b"\r\nto the",
    UpstreamFault.CLOSE: b"",
    UpstreamFault.CUT: _OK + b"Content-Length: 5000\r\n\r\ncut",
    UpstreamFault.CUT_CHUNKED: _OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\ncut\r\n",
    UpstreamFault.BAD_CHUNK: _OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\ncut\r\nZZ\r\n",
    UpstreamFault.NOT_HTTP: b"SMTP ready\r\n\r\n",
    UpstreamFault.BAD_HEAD: _OK + b"Content-Length : 2\r\n\r\nok",
    UpstreamFault.TWO_LENGTHS: _OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
}


class CampaignUpstream:
    """A server for all plans. An async context manager."""

    def __init__(self, generator: random.Random, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self.plans: dict[int, Plan] = {}
        self._generator = generator
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CampaignUpstream:
        context = self._certificate.server_context() if self._certificate is not None else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**21, backlog=512, ssl=context)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def cut_stalled(self) -> None:
        """End the connections that stall."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(Wire(reader, writer)), name="upstream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wire: Wire) -> None:
        try:
            while await self._respond(wire):
                pass
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            wire.writer.transport.abort()

    async def _respond(self, wire: Wire) -> bool:
        """Read a request and respond; return whether the connection is kept."""
        head = await wire.reader.readuntil(b"\r\n\r\n")
        found = _ID.search(head)
        plan = self.plans[int(found[1])] if found else None
        fault = plan.upstream if plan is not None else UpstreamFault.NONE
        if plan is not None:
            plan.is_reached = True
            plan.is_late |= plan.is_judged
        early = b"HTTP/1.1 413 No\r\nContent-Length: 5\r\n\r\nearly"
        if fault in (UpstreamFault.EARLY, UpstreamFault.EARLY_CLOSE):
            wire.writer.write(early)
            await wire.writer.drain()
            if fault is UpstreamFault.EARLY_CLOSE:
                # With a reset where a part of the request is unread. The gateway can always read the response: asyncio
                # sets TCP_NODELAY, so it was sent, and the kernel keeps what came before a reset.
                return False
        if fault is UpstreamFault.RESET:
            await wire.reader.read(self._generator.choice([1, 1000, 100_000]))
            wire.reset()
            return False
        body = await _read_body(head.lower(), wire.reader)
        if plan is not None and not head.startswith((b"GET", b"HEAD")):
            plan.received.append(body)
        if fault is UpstreamFault.EARLY:
            return True
        return await self._send(fault, wire)

    async def _send(self, fault: UpstreamFault, wire: Wire) -> bool:
        if fault in _KEEPING:
            wire.writer.write(_KEEPING[fault])
            await wire.writer.drain()
            return True
        if fault in _CLOSING:
            wire.writer.write(_CLOSING[fault])
            await wire.writer.drain()
            await self._close(fault, wire)
            return False
        if fault is UpstreamFault.STALL:
            await asyncio.sleep(_STALL_SECONDS)
        wire.writer.write(_OK + b"Content-Length: %d\r\n\r\n" % len(BIG))
        for at in range(0, len(BIG), len(BIG) // 5):
            wire.writer.write(BIG[at : at + len(BIG) // 5])
            await wire.writer.drain()
            if fault is UpstreamFault.STALL_IN_BODY:
                await asyncio.sleep(_STALL_SECONDS)
            if fault is UpstreamFault.RESET_IN_BODY:
                wire.reset()
                return False
            await asyncio.sleep(0.005)
        return True

    async def _close(self, fault: UpstreamFault, wire: Wire) -> None:
        """End a connection: as it should be, or, after a response that was cut, perhaps not."""
        writer, is_cut = wire.writer, fault is UpstreamFault.CUT_UNSIZED
        if writer.can_write_eof():
            if is_cut:
                wire.reset()
                return
            writer.write_eof()
        elif is_cut or (fault is not UpstreamFault.CLOSE_DELIMITED and self._generator.random() < _NO_NOTIFY_SHARE):
            # Without the close_notify of TLS.
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        else:
            writer.close()
        async with asyncio.timeout(_STALL_SECONDS):
            await wire.reader.read(1)
            await (writer.wait_closed() if writer.is_closing() else asyncio.sleep(0))


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    if b"transfer-encoding: chunked" in head:
        body = bytearray()
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return bytes(body)
    if b"content-length: " in head:
        return await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return b""
