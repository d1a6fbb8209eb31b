"""compress and decompress: gzip and deflate put on or taken off a file on its way, in a thread.

A compressed file may grow a thousandfold: it comes out in small pieces, each counted against `max_bytes` before it
goes on.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from gateway.config.filters import Coding
from gateway.errors import Fault, FaultKind
from gateway.filters.file import FileHead, FilterContext
from gateway.http.limits import limit_fault

#: What comes out of a step at most.
_STEP_BYTES: Final = 256 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
#: gzip or zlib by its first bytes.
_EITHER: Final = 32 + zlib.MAX_WBITS


class CompressFactory:
    """Compresses files."""

    def __init__(self, coding: Coding, level: int, context: FilterContext) -> None:
        self._wbits = _GZIP if coding == "gzip" else zlib.MAX_WBITS
        self._level = level
        self._context = context

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the compressed file."""
        del file
        loop, threads = asyncio.get_running_loop(), self._context.threads
        made = zlib.compressobj(self._level, wbits=self._wbits)
        async with aclosing(chunks):  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                if passed := await loop.run_in_executor(threads, made.compress, chunk):
                    yield passed
        yield made.flush()


class DecompressFactory:
    """Decompresses files that are gzip or zlib; others are refused."""

    def __init__(self, max_bytes: float, context: FilterContext) -> None:
        self._max_bytes = max_bytes
        self._context = context

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the file decompressed. Raises Fault BAD_CODING, or BODY_TOO_LARGE for a bomb."""
        loop, threads = asyncio.get_running_loop(), self._context.threads
        made = _Expanding(file)
        left = self._max_bytes
        async with aclosing(chunks):  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                made.add(chunk)
                while made.has_more:
                    passed = await loop.run_in_executor(threads, made.step)
                    left -= len(passed)
                    if left < 0:
                        raise limit_fault(
                            FaultKind.BODY_TOO_LARGE,
                            self._context.route,
                            "filters.decompress.max_bytes",
                            self._max_bytes,
                            int(self._max_bytes - left),
                            what=f"Decompressed, {file}",
                        )
                    if passed:
                        yield passed
        made.finish()


class _Expanding:
    """A decompressor that gives a step at a time."""

    def __init__(self, file: FileHead) -> None:
        self._file = file
        self._made = zlib.decompressobj(wbits=_EITHER)
        self._waiting = b""
        self._is_full = False

    @property
    def has_more(self) -> bool:
        """Whether a step may give something: input waits, or the last step gave all it might."""
        return bool(self._waiting) or self._is_full

    def add(self, chunk: bytes) -> None:
        """Take more of the file."""
        self._waiting = chunk

    def step(self) -> bytes:
        """Return some bytes. Raises Fault BAD_CODING."""
        if self._made.eof:
            # gzip members may follow each other (RFC 1952 section 2.2).
            self._made = zlib.decompressobj(wbits=_EITHER)
        try:
            passed = self._made.decompress(self._waiting, _STEP_BYTES)
        except zlib.error as exc:
            raise self._fault("is not gzip or zlib") from exc
        self._waiting = self._made.unused_data if self._made.eof else self._made.unconsumed_tail
        self._is_full = len(passed) == _STEP_BYTES and not self._made.eof
        return passed

    def finish(self) -> None:
        """Raises Fault BAD_CODING if the file was cut short."""
        if not self._made.eof:
            raise self._fault("ends within its compressed data")

    def _fault(self, what: str) -> Fault:
        return Fault(FaultKind.BAD_CODING, f"What came as {self._file} {what}: send it compressed, and whole.")
