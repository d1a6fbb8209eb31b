"""The test kit for filters, ours and others': a filter run over a file without a gateway, cut in many ways."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from gateway.filters.file import FileHead, FilteredFile, FilterFactory

#: What a file is called where a test does not care.
ANY_FILE: Final = FileHead(1, "file", "a.bin", "application/octet-stream", None)
_CUTTINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Passed:
    """What a filter let through, and what it found out."""

    data: bytes
    facts: dict[str, str | int]


async def run_filter(kind: FilterFactory, chunks: Iterable[bytes], file: FileHead = ANY_FILE) -> Passed:
    """Run a filter over the chunks of one file. Raises what it raises."""
    source = _not_empty(chunks)

    async def read() -> bytes:
        return await anext(source, b"")

    filtered = FilteredFile([kind], file, read, nullcontext)
    data = bytearray()
    try:
        await filtered.read_first()
        while passed := await filtered.read():
            data += passed
    finally:
        await filtered.close()
    return Passed(bytes(data), filtered.facts())


async def run_all_cuttings(kind: FilterFactory, data: bytes, file: FileHead = ANY_FILE) -> Passed:
    """Run a filter over a file in one chunk, in single bytes where it is short, and cut at random places.

    Raises AssertionError if it does not come out the same each time: the edges of chunks mean nothing.
    """
    first = await run_filter(kind, [data], file)
    chance = random.Random(len(data))
    cuttings = [[data[at : at + 1] for at in range(len(data))]] if len(data) <= _SHORT_BYTES else []
    for _ in range(_CUTTINGS):
        cuts = sorted({0, *(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 9))), len(data)})
        cuttings.append([data[begin:end] for begin, end in itertools.pairwise(cuts)])
    for cutting in cuttings:
        again = await run_filter(kind, cutting, file)
        if again != first:
            raise AssertionError(f"cut into {[len(piece) for piece in cutting]} bytes, the filter gives another result")
    return first


_SHORT_BYTES: Final = 2000


async def _not_empty(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        if chunk:
            yield chunk
