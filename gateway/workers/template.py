"""The template: the process that workers are forked from, with all modules imported, and with no loop and no thread.

A worker that is forked shares the memory of the modules: 16 MiB of its own where one that is started fresh has 36, and
it starts in milliseconds. The supervisor itself cannot be forked from: it has threads, and a lock that one of them has
at that moment would never be released in the child. So the template is forked from it before its first thread. Workers
are the template's children: it reports their ends, and sends signals to them, since a process id is only certain to be
a worker's until it was waited for.

    supervisor -> template    FORK number + descriptors   SIGNAL process id, signal
    template -> supervisor    FORKED number, process id   FAILED number, errno      EXITED process id, wait status

Each message has 12 bytes. The template ends when the supervisor does; the workers notice that end themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import faulthandler
import gc
import io
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Protocol

from gateway.memory import tune_memory
from gateway.observe.output import open_lock
from gateway.workers.load import LoadTable

_MESSAGE: Final = struct.Struct("!Iii")
_BATCH_BYTES: Final = 64 * _MESSAGE.size
_MAX_DESCRIPTORS: Final = 8
_STANDARD_ERROR: Final = 2


class RunWorker(Protocol):
    """Runs a worker with the descriptors that were passed for it, and returns at its end."""

    def __call__(self, descriptors: list[int], *, table: LoadTable) -> None:
        """Run it."""
        ...


class _Op(enum.IntEnum):
    FORK = enum.auto()
    SIGNAL = enum.auto()
    FORKED = enum.auto()
    FAILED = enum.auto()
    EXITED = enum.auto()


def name_process(name: str) -> None:
    """Set what `ps` and `top` show for this process, at most 15 characters; nothing where there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


@dataclass(frozen=True, slots=True)
class Child:
    """A worker's process. `exited` gets its wait status, and is cancelled if the template ends first."""

    pid: int
    exited: asyncio.Future[int]


class Template:
    """The supervisor's side of the template. `close` it at the end."""

    def __init__(self, pid: int, control: socket.socket, table: LoadTable) -> None:
        self.pid = pid
        #: In the memory of all processes.
        self.table = table
        #: Of standard output: for the log of each process.
        self.output_lock = open_lock()
        self._control = control
        #: Open as long as this process is.
        self._standard_files: list[io.FileIO] = []
        self._received = bytearray()
        self._count = 0
        #: Forks under way.
        self._forks: dict[int, asyncio.Future[Child]] = {}
        #: Workers that have not ended, by process id.
        self._children: dict[int, Child] = {}
        #: Set when the template has ended.
        self.ended = asyncio.Event()

    @classmethod
    def start(cls, run_worker: RunWorker) -> Template:
        """Fork the template; `run_worker` runs in each worker. Call it before there is a loop or a thread."""
        table = LoadTable()
        standard_files = _open_standard_descriptors()
        tune_memory()
        own, other = socket.socketpair()
        # Python's flush at the end of a forked process would write what is buffered here a second time.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            _run_template(other, partial(run_worker, table=table))
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        other.close()
        template = cls(pid, own, table)
        template._standard_files = standard_files
        return template

    def listen(self) -> None:
        """Read the template's messages in the running loop."""
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._read)

    async def fork(self, descriptors: list[int]) -> Child:
        """Fork a worker, which gets duplicates of the descriptors. Raises OSError. Cancelling it ends the worker."""
        self._count += 1
        number = self._count
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forks[number] = future
        try:
            socket.send_fds(self._control, [_MESSAGE.pack(_Op.FORK, number, 0)], descriptors)
            return await future
        finally:
            del self._forks[number]

    def send_signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a worker; nothing if it has ended. Without the template its channel must be open."""
        with contextlib.suppress(OSError):
            if self.ended.is_set():
                os.kill(pid, number)
                return
            self._control.send(_MESSAGE.pack(_Op.SIGNAL, pid, number))

    def close(self) -> None:
        """End the template and wait for that. Workers that are left are not its children any more."""
        self._control.close()
        os.close(self.output_lock)
        # One that was stopped by a signal would not see the end. It has nothing to lose.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def ignore(self) -> None:
        """Read no more messages: for the end of the loop."""
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control)

    def _read(self) -> None:
        try:
            data = self._control.recv(_BATCH_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            for future in self._forks.values():
                if not future.done():
                    future.set_exception(OSError(errno.ECHILD, "the template process has ended"))
            for child in self._children.values():
                child.exited.cancel()
            self.ended.set()
            return
        self._received += data
        while len(self._received) >= _MESSAGE.size:
            op, first, second = _MESSAGE.unpack_from(self._received)
            del self._received[: _MESSAGE.size]
            self._handle(op, first, second)

    def _handle(self, op: int, first: int, second: int) -> None:
        if op == _Op.EXITED:
            self._children.pop(first).exited.set_result(second)
            return
        if op == _Op.FORKED:
            # Its end may be reported before `fork` has returned.
            child = self._children[second] = Child(second, asyncio.get_running_loop().create_future())
        future = self._forks.get(first)
        if future is not None and not future.done():
            if op == _Op.FORKED:
                future.set_result(child)
            else:
                future.set_exception(OSError(second, os.strerror(second)))
        elif op == _Op.FORKED:
            self.send_signal(second, signal.SIGKILL)


#: The terminal and service managers send them to the whole group: what they mean is the supervisor's business.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _run_template(control: socket.socket, run_worker: Callable[[list[int]], None]) -> NoReturn:
    """Be the template, in the forked process, until the supervisor ends."""
    status = 1
    try:
        name_process("gateway-template")
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _close_all_but(control.fileno())
        # Nothing of what exists now becomes garbage: to look for it would unshare the memory.
        gc.freeze()
        _Template(control, run_worker).serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _open_standard_descriptors() -> list[io.FileIO]:
    """Open /dev/null where a standard descriptor is closed: plug-ins write there, and workers replace standard error.

    Another file would be hit.
    """
    files = []
    for descriptor in range(_STANDARD_ERROR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            # A new file gets the lowest that is free.
            files.append(io.FileIO(os.devnull, "r+"))
    return files


def _close_all_but(kept: int) -> None:
    """Close what the supervisor has opened: a listening socket that is open here would stay open for clients."""
    for name in os.listdir("/dev/fd"):
        # The descriptor of this listing is closed by now.
        if int(name) > _STANDARD_ERROR and int(name) != kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


class _Template:
    """The template's own side."""

    def __init__(self, control: socket.socket, run_worker: Callable[[list[int]], None]) -> None:
        self._control = control
        self._run_worker = run_worker
        self._children: set[int] = set()
        self._wakeup, self._woken = socket.socketpair()
        self._wakeup.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> None:
        """Serve until the supervisor ends."""
        with contextlib.suppress(ConnectionError):
            while True:
                ready, _, _ = select.select([self._control, self._wakeup], [], [])
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                    self._reap()
                if self._control in ready and not self._receive():
                    return

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._children.discard(pid)
            self._control.sendall(_MESSAGE.pack(_Op.EXITED, pid, status))

    def _receive(self) -> bool:
        """Do what the next message asks for; return whether there was one."""
        data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE.size, _MAX_DESCRIPTORS)
        while data and len(data) < _MESSAGE.size:
            data += self._control.recv(_MESSAGE.size - len(data))
        if not data:
            return False
        op, first, second = _MESSAGE.unpack(data)
        if op == _Op.FORK:
            self._fork(first, descriptors)
        elif first in self._children:
            os.kill(first, second)
        return True

    def _fork(self, number: int, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as exc:
            pid = -1
            self._control.sendall(_MESSAGE.pack(_Op.FAILED, number, exc.errno or errno.EAGAIN))
        if not pid:
            self._be_worker(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._children.add(pid)
            self._control.sendall(_MESSAGE.pack(_Op.FORKED, number, pid))

    def _be_worker(self, descriptors: list[int]) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for sock in (self._control, self._wakeup, self._woken):
                sock.close()
            self._run_worker(descriptors)
            status = 0
        except BaseException:
            # The last words, which the supervisor logs.
            traceback.print_exc()
        finally:
            # Not sys.exit: what was to happen at the supervisor's end is not to happen at a worker's.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)


def enable_stack_dumps(number: signal.Signals) -> None:
    """Write the stacks of all threads to standard error at this signal, and at a crash of the interpreter."""
    faulthandler.enable()
    faulthandler.register(number, all_threads=True)
