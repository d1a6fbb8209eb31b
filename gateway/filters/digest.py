"""digest: hashes every file on its way, and holds it to what its sender said of it (RFC 9530).

Hashing runs in a thread while the network moves the next chunks, one batch behind. A file whose sender gave a
Content-Digest or Repr-Digest that does not fit is cut before its last chunk has gone on.
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

#: A thread is bothered with so many bytes at once, and twice that is held. With room for two chunks the network moves
#: on while one is hashed: a digest costs 1.2 to 1.3 times its hash then, and 1.4 with the least.
_MAX_BATCH_BYTES: Final = 1536 * 1024
_MIN_BATCH_BYTES: Final = 512 * 1024
#: What the batches of one route may be together, but for the least each.
_ALL_BATCHES_BYTES: Final = 8 * 2**20
#: Less than this at the end of a short file is hashed where it is.
_INLINE_BYTES: Final = 16 * 1024
#: Names of the config, and what RFC 9530 section 7.2 calls them; None is not registered there.
RFC_NAMES: Final = {
    "sha256": "sha-256",
    "sha512": "sha-512",
    "sha1": "sha",
    "md5": "md5",
    "crc32c": "crc32c",
    "blake2b": None,
}
# A Dictionary of Byte Sequences (RFC 8941 sections 3.2 and 3.3.5), of which keys not known are passed over.
_MEMBER: Final = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):[ \t]*")
_CLAIMS: Final = ("content-digest", "repr-digest")


class Hash(Protocol):
    """hashlib's interface, as far as it is used."""

    def update(self, data: bytes, /) -> Any:
        """Take bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest of all of them."""
        ...


def make_hash(algorithm: str) -> Hash:
    """Return a fresh hash. Raises ImportError where the library for it is missing."""
    if algorithm == "crc32c":
        made: Hash = importlib.import_module("crc32c").CRC32CHash()
        return made
    return hashlib.new(algorithm, usedforsecurity=False)


class DigestFactory:
    """Hashes with one algorithm, and with whatever the sender used."""

    first_bytes = 0

    def __init__(self, algorithm: str, context: FilterContext) -> None:
        make_hash(algorithm)
        self.algorithm = algorithm
        self.threads = context.threads
        #: Files being hashed now.
        self.open_count = 0

    def __call__(self, file: FileHead) -> Observer:
        """Return the filter of a file. Raises Fault for a claim that cannot be read."""
        return _Digest(self, _claims_of(file), file)

    @property
    def batch_bytes(self) -> int:
        """How much is to be gathered before a thread is bothered."""
        return min(_MAX_BATCH_BYTES, max(_MIN_BATCH_BYTES, _ALL_BATCHES_BYTES // (self.open_count or 1)))


class _Digest:
    def __init__(self, kind: DigestFactory, claims: list[tuple[str, bytes]], file: FileHead) -> None:
        self._kind = kind
        self._algorithm = algorithm = kind.algorithm
        self._claims = claims
        self._file = file
        self._hashes = {name: make_hash(name) for name in {algorithm, *(name for name, _ in claims)}}
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._hashing: Future[None] | None = None
        self._is_open = True
        kind.open_count += 1

    async def feed_data(self, chunk: bytes) -> None:
        """Take a chunk; returns when at most one batch before it is still being hashed."""
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        if self._batch_bytes >= self._kind.batch_bytes:
            await self._wait()
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._hashing = self._kind.threads.submit(self._update, batch)

    async def finish(self) -> None:
        """Hold the file to what its sender said. Raises Fault DIGEST_MISMATCH."""
        await self._wait()
        if self._batch_bytes > _INLINE_BYTES:
            self._hashing = self._kind.threads.submit(self._update, self._batch)
            await self._wait()
        else:
            self._update(self._batch)
        self._batch = []
        for name, claimed in self._claims:
            if self._hashes[name].digest() != claimed:
                raise Fault(
                    FaultKind.DIGEST_MISMATCH,
                    f"The {name} of {self._file} is not the one its sender gave: it changed on its way, send it again.",
                    facts={"expected": claimed.hex(), "received": self._hashes[name].digest().hex()},
                )

    def close(self) -> None:
        """Drop what is held; a batch being hashed is finished by its thread."""
        self._batch = []
        if self._is_open:
            self._is_open = False
            self._kind.open_count -= 1

    def facts(self) -> Mapping[str, str | int]:
        """Return the digest in hex, by the algorithm's name."""
        return {self._algorithm: self._hashes[self._algorithm].digest().hex()}

    def response_headers(self) -> Sequence[Header]:
        """Return the digest as in RFC 9530, under a name of our own: Content-Digest would speak of the answer."""
        name = RFC_NAMES[self._algorithm] or self._algorithm
        digest = base64.b64encode(self._hashes[self._algorithm].digest()).decode()
        return [(b"X-Upload-Digest", f"{name}=:{digest}:".encode())]

    def _update(self, batch: list[bytes]) -> None:
        for made in self._hashes.values():
            for chunk in batch:
                made.update(chunk)

    async def _wait(self) -> None:
        hashing, self._hashing = self._hashing, None
        # Most often done already: then nobody is woken for it.
        if hashing is not None and not hashing.done():
            await asyncio.shield(asyncio.wrap_future(hashing))
        if hashing is not None:
            hashing.result()


def _claims_of(file: FileHead) -> list[tuple[str, bytes]]:
    """Return what the sender says of the file: known algorithms and digests. Raises Fault."""
    known = {rfc: name for name, rfc in RFC_NAMES.items() if rfc is not None and _can_hash(name)}
    return [
        (known[key], digest)
        for field in _CLAIMS
        for key, digest in parse_digests(file.headers.get(field, ""), f"{field} of {file}")
        if key in known
    ]


def parse_digests(value: str, where: str) -> list[tuple[str, bytes]]:
    """Return the members of a Content-Digest or Repr-Digest. Raises Fault BAD_DIGEST for what is none."""
    members = []
    for text in value.split(",") if value.strip() else ():
        found = _MEMBER.fullmatch(text)
        if found is None or len(found[2]) % 4:
            raise Fault(FaultKind.BAD_DIGEST, f"{where} is not of the form sha-256=:BASE64: (RFC 9530 section 2).")
        members.append((found[1], base64.b64decode(found[2])))
    return members


def _can_hash(algorithm: str) -> bool:
    try:
        make_hash(algorithm)
    except ImportError:
        return False
    return True
