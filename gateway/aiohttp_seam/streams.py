"""aiohttp's StreamReader: whether it holds data.

Its limits have a public setter (`set_read_chunk_size`).
"""

from __future__ import annotations

from aiohttp.streams import StreamReader


def has_buffered(stream: StreamReader) -> bool:
    """Return whether the stream holds data, so that a read returns without waiting.

    Not for the stand-in that aiohttp returns where a response has no body (HEAD, 204, 304, length 0): it has no
    buffer. Verified against aiohttp 3.14.5; delete when StreamReader has a public method for it.
    """
    return bool(stream._buffer)
