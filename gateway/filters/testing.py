"""Test functions for filters and plug-ins: run a filter on a file without a gateway, in chunks of many sizes."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from gateway.filters.file import FileHead, FilteredFile, FilterFactory

#: The default head of a file in tests.
ANY_FILE: Final = FileHead(1, "file", "a.bin", "application/octet-stream", None)
_RANDOM_CHUNKINGS: Final = 8


@dataclass(frozen=True, slots=True)
class FilterOutput:
    """The bytes that a filter passed on, and its facts."""

    data: bytes
    facts: dict[str, str | int]


async def run_filter(factory: FilterFactory, chunks: Iterable[bytes], file: FileHead = ANY_FILE) -> FilterOutput:
    """Run a filter on the chunks of one file. Raises what the filter raises."""
    source = _not_empty(chunks)

    async def read() -> bytes:
        return await anext(source, b"")

    filtered = FilteredFile([factory], file, read, _NoCharge())
    data = bytearray()
    try:
        await filtered.read_first()
        while chunk := await filtered.read():
            data += chunk
    finally:
        await filtered.close()
    return FilterOutput(bytes(data), filtered.facts())


async def run_all_chunkings(factory: FilterFactory, data: bytes, file: FileHead = ANY_FILE) -> FilterOutput:
    """Run a filter on a file in one chunk, in single bytes if it is short, and in chunks of random sizes.

    Raises AssertionError unless every run has the same output: chunk boundaries have no meaning.
    """
    first = await run_filter(factory, [data], file)
    generator = random.Random(len(data))
    chunkings = [[data[at : at + 1] for at in range(len(data))]] if len(data) <= _SHORT_BYTES else []
    for _ in range(_RANDOM_CHUNKINGS):
        cuts = sorted({0, *(generator.randrange(len(data) + 1) for _ in range(generator.randrange(1, 9))), len(data)})
        chunkings.append([data[begin:end] for begin, end in itertools.pairwise(cuts)])
    for chunking in chunkings:
        again = await run_filter(factory, chunking, file)
        if again != first:
            raise AssertionError(f"the output differs for chunks of {[len(chunk) for chunk in chunking]} bytes")
    return first


_SHORT_BYTES: Final = 2000


class _NoCharge:
    """Charges nothing: there is no exchange."""

    def filtering(self) -> AbstractContextManager[None]:
        return nullcontext()

    def resume_filtering(self) -> None:
        return


async def _not_empty(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        if chunk:
            yield chunk
