"""aiohttp's StreamReader: whether it holds data, and which.

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


def peek_buffered(stream: StreamReader) -> bytes:
    """Return what the stream holds, of which nothing was read; it stays unread. b"" for aiohttp's stand-in, see above.

    Verified against aiohttp 3.14.5.
    """
    buffer = getattr(stream, "_buffer", None)
    if not buffer:
        return b""
    return buffer[0] if len(buffer) == 1 else b"".join(buffer)


def take_buffered(stream: StreamReader) -> bytes:
    """Take what a stream that has failed holds: aiohttp's own read raises at once. b"" if it holds nothing.

    Verified against aiohttp 3.14.5; delete when it returns first what came before the failure.
    """
    data = b"".join(stream._buffer)
    stream._buffer.clear()
    return data
