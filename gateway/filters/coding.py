"""The filters `compress` and `decompress`: gzip and zlib, in a thread.

Decompression may multiply the size by a thousand: the output is produced in steps of at most 256 KiB, and each is
counted against `max_bytes` before it is passed on.
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

#: Limits for one decompression step: its output, and how many gzip members it decodes.
_STEP_BYTES: Final = 256 * 1024
STEP_MEMBERS: Final = 512
#: Input of a new member at first; four times as much after each call. zlib copies what follows a member's end.
_FIRST_INPUT_BYTES: Final = 512
_GZIP: Final = 16 + zlib.MAX_WBITS
#: Detect gzip or zlib by the first bytes.
_EITHER: Final = 32 + zlib.MAX_WBITS


class CompressFactory:
    """Creates the compress filter of a route."""

    def __init__(self, coding: Coding, level: int, context: FilterContext) -> None:
        self._wbits = _GZIP if coding == "gzip" else zlib.MAX_WBITS
        self._level = level
        self._context = context

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the compressed file."""
        del file
        loop, threads = asyncio.get_running_loop(), self._context.threads
        compressor = zlib.compressobj(self._level, wbits=self._wbits)
        async with aclosing(chunks):  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                if data := await loop.run_in_executor(threads, compressor.compress, chunk):
                    yield data
        yield compressor.flush()


class DecompressFactory:
    """Creates the decompress filter of a route; it refuses files that are neither gzip nor zlib."""

    def __init__(self, max_bytes: float, context: FilterContext) -> None:
        self._max_bytes = max_bytes
        self._context = context

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the decompressed file. Raises Fault BAD_CODING, or BODY_TOO_LARGE over `max_bytes`."""
        loop, threads = asyncio.get_running_loop(), self._context.threads
        decompressor = _Decompressor(file)
        remaining = self._max_bytes
        async with aclosing(chunks):  # type: ignore[type-var]  # a generator
            async for chunk in chunks:
                decompressor.add(chunk)
                while decompressor.has_more:
                    data = await loop.run_in_executor(threads, decompressor.decompress_next)
                    remaining -= len(data)
                    if remaining < 0:
                        raise limit_fault(
                            FaultKind.BODY_TOO_LARGE,
                            self._context.route,
                            "filters.decompress.max_bytes",
                            self._max_bytes,
                            int(self._max_bytes - remaining),
                            what=f"Decompressed, {file}",
                        )
                    if data:
                        yield data
        decompressor.finish()


class _Decompressor:
    """Decompresses in steps: `add` input, then call `decompress_next` while `has_more`; `finish` at the file's end."""

    def __init__(self, file: FileHead) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj(wbits=_EITHER)
        self._input = memoryview(b"")
        self._input_bytes = _FIRST_INPUT_BYTES
        self._has_output = False

    @property
    def has_more(self) -> bool:
        """Whether there is input left, or output left because the last step reached its limit."""
        return bool(self._input) or self._has_output

    def add(self, chunk: bytes) -> None:
        """Set the next input; all input before must be consumed."""
        self._input = memoryview(chunk)

    def decompress_next(self) -> bytes:
        """Return at most one step's output, may be b"". Raises Fault BAD_CODING.

        A step decodes many members if they are small: a flood of empty ones costs no change of threads each.
        """
        pieces: list[bytes] = []
        room_bytes, member_count = _STEP_BYTES, 0
        while self.has_more and room_bytes and member_count < STEP_MEMBERS:
            data = self._decompress(room_bytes)
            pieces.append(data)
            room_bytes -= len(data)
            member_count += self._decompressor.eof
        return b"".join(pieces)

    def _decompress(self, most: int) -> bytes:
        if self._decompressor.eof:
            # gzip members may follow each other (RFC 1952 section 2.2).
            self._decompressor = zlib.decompressobj(wbits=_EITHER)
            self._input_bytes = _FIRST_INPUT_BYTES
        given = self._input[: self._input_bytes]
        try:
            data = self._decompressor.decompress(given, most)
        except zlib.error as exc:
            raise self._fault("is not gzip or zlib") from exc
        is_ended = self._decompressor.eof
        rest = self._decompressor.unused_data if is_ended else self._decompressor.unconsumed_tail
        self._input = self._input[len(given) - len(rest) :]
        self._input_bytes *= 4
        self._has_output = len(data) == most and not is_ended
        return data

    def finish(self) -> None:
        """Raise Fault BAD_CODING if the compressed data is truncated."""
        if not self._decompressor.eof:
            raise self._fault("ends before the end of its compressed data")

    def _fault(self, what: str) -> Fault:
        return Fault(FaultKind.BAD_CODING, f"The content of {self._file} {what}: send complete gzip or zlib data.")
