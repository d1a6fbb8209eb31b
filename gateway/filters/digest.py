"""The filter `digest`: hash every file, and verify the digest that its sender gave (RFC 9530).

A thread hashes one batch of chunks while the event loop moves the next. If a Content-Digest or Repr-Digest does not
match, the file is cut before its last chunk is passed on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol

from gateway.errors import Fault, FaultKind
from gateway.filters.file import FileHead, FilterContext, Observer
from gateway.http.headers import Header

#: Size of the batches given to a thread; at most two are held per file. A batch of 1.5 MiB fits a chunk while another
#: is hashed: a digest then costs 1.2 to 1.3 times the CPU time of its hash alone, and 1.4 times with the minimum.
_MAX_BATCH_BYTES: Final = 1536 * 1024
_MIN_BATCH_BYTES: Final = 512 * 1024
#: Memory for the batches of all files of a route, as far as the minimum per file allows.
_ROUTE_BATCHES_BYTES: Final = 8 * 2**20
#: Up to this many bytes at the end of a file are hashed on the event loop: a thread would cost more.
_INLINE_BYTES: Final = 16 * 1024
#: Algorithm names of the config and of RFC 9530 section 7.2; None is not registered there.
RFC_NAMES: Final = {
    "sha256": "sha-256",
    "sha512": "sha-512",
    "sha1": "sha",
    "md5": "md5",
    "crc32c": "crc32c",
    "blake2b": None,
    "blake3": None,
}
# A Dictionary of Byte Sequences (RFC 8941 sections 3.2 and 3.3.5); unknown keys are ignored.
_MEMBER: Final = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):[ \t]*")
_DIGEST_HEADERS: Final = ("content-digest", "repr-digest")


class Hash(Protocol):
    """The used part of hashlib's interface."""

    def update(self, data: bytes, /) -> Any:
        """Add bytes to the hash."""
        ...

    def digest(self) -> bytes:
        """Return the digest of all bytes added."""
        ...


def make_hash(algorithm: str) -> Hash:
    """Return a new hash. Raises ImportError if the package of the algorithm is not installed."""
    if algorithm == "crc32c":
        hasher: Hash = importlib.import_module("crc32c").CRC32CHash()
        return hasher
    if algorithm == "blake3":
        hasher = importlib.import_module("blake3").blake3()
        return hasher
    return hashlib.new(algorithm, usedforsecurity=False)


class DigestFactory:
    """Creates digest observers. They use the configured algorithm, and those of the sender's digests."""

    first_bytes = 0

    def __init__(self, algorithm: str, context: FilterContext) -> None:
        make_hash(algorithm)
        self.algorithm = algorithm
        self.threads = context.threads
        #: Files in progress.
        self.open_count = 0

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file. Raises Fault BAD_DIGEST for a malformed Content-Digest or Repr-Digest."""
        return _Digest(self, _expected_digests(file), file)

    @property
    def batch_bytes(self) -> int:
        """The batch size in bytes: smaller if more files are in progress."""
        return min(_MAX_BATCH_BYTES, max(_MIN_BATCH_BYTES, _ROUTE_BATCHES_BYTES // (self.open_count or 1)))


class _Digest:
    def __init__(self, factory: DigestFactory, expected: list[tuple[str, bytes]], file: FileHead) -> None:
        self._factory = factory
        self._algorithm = algorithm = factory.algorithm
        self._expected = expected
        self._file = file
        self._hashes = {name: make_hash(name) for name in {algorithm, *(name for name, _ in expected)}}
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._pending: Future[None] | None = None
        self._is_open = True
        factory.open_count += 1

    async def feed_data(self, chunk: bytes) -> None:
        """Add a chunk. Waits if two batches are full."""
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        if self._batch_bytes >= self._factory.batch_bytes:
            await self._wait()
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._pending = self._factory.threads.submit(self._update, batch)

    async def finish(self) -> None:
        """Verify the sender's digests. Raises Fault DIGEST_MISMATCH."""
        await self._wait()
        if self._batch_bytes > _INLINE_BYTES:
            self._pending = self._factory.threads.submit(self._update, self._batch)
            await self._wait()
        else:
            self._update(self._batch)
        self._batch = []
        for name, digest in self._expected:
            if self._hashes[name].digest() != digest:
                raise Fault(
                    FaultKind.DIGEST_MISMATCH,
                    f"The {name} digest of {self._file} is not the one its sender gave, the data was changed: "
                    "send it again.",
                    facts={"expected": digest.hex(), "received": self._hashes[name].digest().hex()},
                )

    def close(self) -> None:
        """Drop the current batch; the thread finishes the one it hashes."""
        self._batch = []
        if self._is_open:
            self._is_open = False
            self._factory.open_count -= 1

    def facts(self) -> Mapping[str, str | int]:
        """Return the digest in hex, by the algorithm's name."""
        return {self._algorithm: self._hashes[self._algorithm].digest().hex()}

    def response_headers(self) -> Sequence[Header]:
        """Return X-Upload-Digest in the form of RFC 9530; Content-Digest would describe the response's content."""
        name = RFC_NAMES[self._algorithm] or self._algorithm
        digest = base64.b64encode(self._hashes[self._algorithm].digest()).decode()
        return [(b"X-Upload-Digest", f"{name}=:{digest}:".encode())]

    def _update(self, batch: list[bytes]) -> None:
        for hasher in self._hashes.values():
            for chunk in batch:
                hasher.update(chunk)

    async def _wait(self) -> None:
        pending, self._pending = self._pending, None
        # Usually the thread is done: then no wake-up of the event loop is needed.
        if pending is not None and not pending.done():
            await asyncio.shield(asyncio.wrap_future(pending))
        if pending is not None:
            pending.result()


def _expected_digests(file: FileHead) -> list[tuple[str, bytes]]:
    """Return the sender's digests, by algorithm, for algorithms that are available. Raises Fault BAD_DIGEST."""
    known = {rfc: name for name, rfc in RFC_NAMES.items() if rfc is not None and _is_available(name)}
    return [
        (known[key], digest)
        for field in _DIGEST_HEADERS
        for key, digest in parse_digests(file.headers.get(field, ""), f"{field} of {file}")
        if key in known
    ]


def parse_digests(value: str, where: str) -> list[tuple[str, bytes]]:
    """Parse a Content-Digest or Repr-Digest header. Raises Fault BAD_DIGEST if it is malformed."""
    members = []
    for text in value.split(",") if value.strip() else ():
        found = _MEMBER.fullmatch(text)
        if found is None or len(found[2]) % 4:
            raise Fault(FaultKind.BAD_DIGEST, f"{where} is malformed: write sha-256=:BASE64: (RFC 9530 section 2).")
        members.append((found[1], base64.b64decode(found[2])))
    return members


def _is_available(algorithm: str) -> bool:
    try:
        make_hash(algorithm)
    except ImportError:
        return False
    return True
