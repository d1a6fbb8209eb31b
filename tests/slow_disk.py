"""A real file system whose calls a test holds back or makes fail: FUSE, spoken directly, in a process of its own.

Files are in memory. `SlowDisk.hold("READ")` keeps every read waiting in the kernel, as a disk or a network file system
does that does not answer; `release` lets them go on. `fail("WRITE", errno.ENOSPC)` makes them fail. The names are those
of FUSE's operations (linux/fuse.h). Held calls are released by themselves after some seconds, so that a test whose
event loop is blocked fails instead of hanging for ever.

A process, because a thread needs the GIL, which a blocked process may hold.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import selectors
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_NAMES: Final = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 9: "MKDIR", 10: "UNLINK", 11: "RMDIR", 12: "RENAME",
    13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 25: "FLUSH", 26: "INIT",
    27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT",
    38: "DESTROY", 42: "BATCH_FORGET", 45: "RENAME2",
}  # fmt: skip
_SILENT: Final = frozenset({"FORGET", "BATCH_FORGET", "INTERRUPT", "DESTROY"})
_HEADER: Final = struct.Struct("=IIQQIIIHH")
_REPLY: Final = struct.Struct("=IiQ")
_MAX_WRITE: Final = 128 * 1024
_HOLD_SECONDS: Final = 8.0
#: FOPEN_KEEP_CACHE: what was read once stays in the page cache.
_KEEP_CACHE: Final = 2
_ROOT: Final = 1
_BLOCK: Final = 4096
_BLOCK_COUNT: Final = 2**20
_SET_SIZE: Final = 8


class SlowDisk:
    """A slow file system, mounted at a directory. Needs root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def mount(self) -> None:
        """Mount it. Raises OSError where that is not allowed."""
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "tests.slow_disk", str(self.directory))
        root = Path(__file__).parents[1]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=root)
        if await self._read() != "mounted":
            await self._process.wait()
            raise OSError(errno.EPERM, "cannot mount a FUSE file system: needs root and /dev/fuse")

    async def unmount(self) -> None:
        """Unmount it; calls that are still held fail."""
        self._process.stdin.close()  # type: ignore[union-attr]  # a pipe
        await self._process.wait()
        # asyncio closes the pipes in a later iteration of the loop.
        await asyncio.sleep(0)

    async def hold(self, *operations: str) -> None:
        """Hold these operations back from now on."""
        await self._command("hold", *operations)

    async def release(self) -> None:
        """Let held operations go on, and hold none."""
        await self._command("release")

    async def fail(self, operation: str, error: int) -> None:
        """Make an operation fail from now on."""
        await self._command("fail", operation, error)

    async def held(self) -> list[str]:
        """Return the operations that wait now."""
        names: list[str] = await self._command("held")
        return names

    async def wait_held(self, count: int = 1) -> None:
        """Wait until this many operations are held back."""
        async with asyncio.timeout(20):
            while len(await self.held()) < count:  # noqa: ASYNC110 (the process gives no sign)
                await asyncio.sleep(0.001)

    async def _command(self, *command: object) -> Any:
        self._process.stdin.write(json.dumps(command).encode() + b"\n")  # type: ignore[union-attr]  # a pipe
        return await self._read()

    async def _read(self) -> Any:
        line = await asyncio.wait_for(self._process.stdout.readline(), 20)  # type: ignore[union-attr]  # a pipe
        return json.loads(line or "null")


def evict(path: Path) -> None:
    """Drop a file from the page cache, of this or any other disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class _Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, _Node] = field(default_factory=dict)
    modified: float = 1.7e9
    links: int = 1

    def attributes(self) -> bytes:
        seconds, nanoseconds = int(self.modified), int(self.modified % 1 * 1e9)
        size = len(self.data)
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        return struct.pack(
            "=6Q10I", self.number, size, -(-size // 512), *times, self.mode, self.links, 0, 0, 0, _BLOCK, 0
        )

    def entry(self) -> bytes:
        return struct.pack("=4Q2I", self.number, 0, 0, 0, 0, 0) + self.attributes()


class _FileSystem:
    """The operations; each returns its reply or raises OSError."""

    def __init__(self) -> None:
        root = _Node(_ROOT, stat.S_IFDIR | 0o755)
        self._nodes = {_ROOT: root}

    def do(self, name: str, number: int, body: bytes) -> bytes:
        method: Callable[[_Node, bytes], bytes] | None = getattr(self, f"_{name.lower()}", None)
        if method is None:
            raise OSError(errno.ENOSYS, name)
        return method(self._nodes[number], body)

    def _make(self, mode: int) -> _Node:
        node = _Node(max(self._nodes) + 1, mode)
        self._nodes[node.number] = node
        return node

    def _find(self, parent: _Node, name: bytes) -> _Node:
        if name not in parent.names:
            raise OSError(errno.ENOENT, "missing")
        return parent.names[name]

    def _init(self, _: _Node, body: bytes) -> bytes:
        major, _minor, readahead = struct.unpack_from("=3I", body)
        big_writes = 1 << 5
        return struct.pack("=4I2H2I2H8I", major, 31, readahead, big_writes, 16, 16, _MAX_WRITE, 1, 0, 0, *[0] * 8)

    def _lookup(self, node: _Node, body: bytes) -> bytes:
        return self._find(node, body.rstrip(b"\0")).entry()

    def _getattr(self, node: _Node, _: bytes) -> bytes:
        return struct.pack("=Q2I", 0, 0, 0) + node.attributes()

    def _setattr(self, node: _Node, body: bytes) -> bytes:
        valid, _pad, _handle, size = struct.unpack_from("=IIQQ", body)
        if valid & _SET_SIZE:
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        return self._getattr(node, b"")

    def _mkdir(self, node: _Node, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("=I", body)
        return self._add(node, body[8:].rstrip(b"\0"), stat.S_IFDIR | mode).entry()

    def _create(self, node: _Node, body: bytes) -> bytes:
        _flags, mode = struct.unpack_from("=II", body)
        return self._add(node, body[16:].rstrip(b"\0"), stat.S_IFREG | mode & 0o7777).entry() + self._open(node, b"")

    def _add(self, parent: _Node, name: bytes, mode: int) -> _Node:
        if name in parent.names:
            raise OSError(errno.EEXIST, "exists")
        parent.names[name] = node = self._make(mode)
        return node

    def _unlink(self, node: _Node, body: bytes) -> bytes:
        del node.names[body.rstrip(b"\0")]
        return b""

    def _rmdir(self, node: _Node, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        if self._find(node, name).names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        del node.names[name]
        return b""

    def _link(self, node: _Node, body: bytes) -> bytes:
        (number,) = struct.unpack_from("=Q", body)
        name = body[8:].rstrip(b"\0")
        if name in node.names:
            raise OSError(errno.EEXIST, "exists")
        node.names[name] = self._nodes[number]
        return self._nodes[number].entry()

    def _rename(self, node: _Node, body: bytes, skipped: int = 8) -> bytes:
        target = self._nodes[struct.unpack_from("=Q", body)[0]]
        old, new = body[skipped:].split(b"\0")[:2]
        moved, there = self._find(node, old), target.names.get(new)
        if there is not None and stat.S_ISDIR(there.mode):
            raise OSError(errno.EISDIR, "a directory")
        del node.names[old]
        target.names[new] = moved
        return b""

    def _rename2(self, node: _Node, body: bytes) -> bytes:
        return self._rename(node, body, 16)

    def _open(self, _: _Node, __: bytes) -> bytes:
        return struct.pack("=QII", 0, _KEEP_CACHE, 0)

    _opendir = _open

    def _read(self, node: _Node, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("=QQI", body)
        return bytes(node.data[offset : offset + size])

    def _write(self, node: _Node, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("=QQI", body)
        node.data[offset : offset + size] = body[40 : 40 + size]
        node.modified += 1.0
        return struct.pack("=II", size, 0)

    def _readdir(self, node: _Node, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("=QQI", body)
        reply = b""
        for at, (name, child) in enumerate(list(node.names.items())[offset:], offset + 1):
            entry = struct.pack("=QQII", child.number, at, len(name), child.mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(reply) + len(entry) > size:
                break
            reply += entry
        return reply

    def _statfs(self, _: _Node, __: bytes) -> bytes:
        return struct.pack("=5Q4I6I", *[_BLOCK_COUNT] * 5, _BLOCK, 255, _BLOCK, 0, *[0] * 6)

    def _nothing(self, _: _Node, __: bytes) -> bytes:
        return b""

    _release = _releasedir = _flush = _fsync = _fsyncdir = _access = _nothing


class _Server:
    """Answers the kernel and the test."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._files = _FileSystem()
        self._holding: set[str] = set()
        self._failing: dict[str, int] = {}
        self._waiting: list[tuple[str, int, int, bytes]] = []
        self._since = 0.0

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._device, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(0.1):
                if key.fd == self._device:
                    self._serve()
                else:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self._command(*json.loads(line))), flush=True)
            if self._waiting and time.monotonic() - self._since > _HOLD_SECONDS:
                self._release()

    def _command(self, what: str, *arguments: Any) -> object:
        match what:
            case "hold":
                self._holding |= set(arguments)
            case "fail":
                self._failing[arguments[0]] = arguments[1]
            case "release":
                self._failing.clear()
                self._release()
            case _:
                return [name for name, *_ in self._waiting]
        return None

    def _release(self) -> None:
        self._holding.clear()
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._answer(*request)

    def _serve(self) -> None:
        try:
            message = os.read(self._device, _MAX_WRITE + 8192)
        except OSError:
            # The request was taken back meanwhile.
            return
        _, operation, unique, node, *_rest = _HEADER.unpack_from(message)
        name, body = _NAMES.get(operation, str(operation)), message[_HEADER.size :]
        if name in self._holding:
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting.append((name, unique, node, body))
        elif name not in _SILENT:
            self._answer(name, unique, node, body)

    def _answer(self, name: str, unique: int, node: int, body: bytes) -> None:
        error, reply = 0, b""
        try:
            if name in self._failing:
                raise OSError(self._failing[name], "as the test asked")
            reply = self._files.do(name, node or _ROOT, body)
        except OSError as exc:
            error = exc.errno or errno.EIO
        try:
            os.write(self._device, _REPLY.pack(_REPLY.size + len(reply), -error, unique) + reply)
        except OSError:
            # The caller was killed.
            return


def main(arguments: Iterable[str]) -> None:
    """Mount at the directory given, serve until standard input ends, unmount."""
    (directory,) = (name.encode() for name in arguments)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        # A caller that was killed takes its request back: the next read of a blocking descriptor would then not return.
        device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
        options = b"fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions" % device
        if libc.mount(b"slow", directory, b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
    except OSError as exc:
        print(json.dumps(str(exc)), flush=True)
        return
    print(json.dumps("mounted"), flush=True)
    try:
        _Server(device).run()
    finally:
        os.close(device)
        libc.umount2(directory, 2)


if __name__ == "__main__":
    main(sys.argv[1:])
