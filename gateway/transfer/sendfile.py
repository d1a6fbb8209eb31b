"""The lane of files: from a file to a socket in the kernel, from callback to callback of the event loop.

A call sends what the socket takes, and the next one has to wait until the client has taken some of it: 250 to 330 times
per GB. A task that is woken for each of them takes a future, two calls to the selector and two iterations of the loop
more than a callback that sends. The task waits meanwhile, and goes on where a thread has to read from the disk.

The callback asks for a turn (`gateway.transfer.turns`) before each call, except where its turn has come.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.errors import Fault
from gateway.transfer.exhaustion import exhaustion_fault
from gateway.transfer.pump import Transfer
from gateway.transfer.raw_socket import RawSocket


class SendfileSource(Protocol):
    """A file that the kernel can send to a socket."""

    @property
    def has_filled_socket(self) -> bool:
        """Whether the last call took less than there was to send: the socket is full."""
        ...

    def send_ready(self, descriptor: int) -> int | None:
        """Send what a socket takes without waiting of the bytes that are in memory; return how many, 0 if none.

        None where the next bytes are not in memory: `read_cold` has to read them. Raises Fault, OSError.
        """
        ...

    async def read_cold(self) -> None:
        """Read the next bytes from the disk. Raises Fault."""
        ...


class Receiver(Protocol):
    """Where the file is sent to."""

    def translate_error(self, exc: OSError) -> Fault | OSError:
        """Return what a failure to send means."""
        ...


class SendfileLane:
    """Sends the rest of a transfer. `read` counts what it sends by itself; there is nothing to write."""

    def __init__(self, transfer: Transfer, file: SendfileSource, socket: RawSocket, receiver: Receiver) -> None:
        self._transfer = transfer
        self._file = file
        self._socket = socket
        self._receiver = receiver
        self._is_watching = False
        #: Ends when all is sent, or the disk has to be read. None while no step may be taken.
        self._waiter: asyncio.Future[None] | None = None
        self.acknowledged = socket.acknowledged

    async def read(self) -> int:
        """Send what is in memory, then read the next bytes from the disk, if there are any. Returns 0."""
        try:
            await self._send()
            if not self._transfer.is_whole:
                await self._file.read_cold()
        except OSError as exc:
            raise self._translate(exc) from exc
        return 0

    async def write(self, _size: int) -> None:
        """Do nothing: reading and writing are one call."""

    async def _send(self) -> None:
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            self._step()
            await waiter
        finally:
            self._waiter = None
            self._stop_watching()
            if waiter.done() and not waiter.cancelled():
                self._record(waiter.exception())

    def _record(self, exc: BaseException | None) -> None:
        """Record what broke the body, also where the task was cancelled before it raised that."""
        fault = self._translate(exc) if isinstance(exc, OSError) else exc
        if isinstance(fault, Fault):
            self._transfer.fail(fault)

    def _translate(self, exc: OSError) -> Fault | OSError:
        return exhaustion_fault(exc) or self._receiver.translate_error(exc)

    def _begin_step(self) -> None:
        """Take a step if there is time, else wait for a turn. The socket takes bytes."""
        turns = self._transfer.turns
        if turns.has_time_for_event():
            self._step()
        else:
            self._stop_watching()
            turns.call(self._step)

    def _step(self) -> None:
        """Send until the socket is full or the time is up, and go on later; wake the task if it has to go on itself."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            # Cancelled while it waited for a turn.
            return
        try:
            while self._send_once():
                if self._file.has_filled_socket or not self._transfer.turns.has_time_for_event():
                    self._watch()
                    return
        except BaseException as exc:
            # Also a bug: the task ends with it.
            self._stop_watching()
            waiter.set_exception(exc)
            return
        self._stop_watching()
        waiter.set_result(None)

    def _send_once(self) -> bool:
        """Send and count; return whether there is more to send without the disk."""
        transfer = self._transfer
        meter, policy = transfer.meter, transfer.policy
        meter.wait_on(policy.read_leg)
        sent = self._file.send_ready(self._socket.descriptor)
        if sent is None:
            return False
        meter.wait_on(policy.write_leg)
        if sent:
            meter.count(sent)
        return not transfer.is_whole

    def _watch(self) -> None:
        if not self._is_watching:
            self._socket.call_when_writable(self._begin_step)
            self._is_watching = True

    def _stop_watching(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._socket.stop_calling()
