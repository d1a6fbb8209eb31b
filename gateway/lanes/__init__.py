"""How bytes are moved between two ends: the copy lane everywhere, below the transports where both ends are plain TCP.

`Carrier` is the one place where the lane of a transfer is chosen. Behaviour, counting and watching are the same on
each: a lane only replaces what a pull reads from and where a chunk is written to.

- splice: nothing needs to see the bytes; the kernel moves them through a pipe and Python only counts.
- copy, direct: something sees them (a filter), so they come in as chunks, but straight from the socket and straight to
  the other, past aiohttp's parser, its queue and asyncio's buffers.
  A chunked upload is decoded here and sent in chunks of ours, as large as what came at once. A body that an action
  pulls in pieces of its own (to disk, file by file, remade) comes in this way too.
- copy: through aiohttp's streams: TLS, chunked answers, short bodies, whatever is not a plain socket.
"""

from gateway.lanes.choice import Carrier, Lane, Lanes, PulledBody, Sink, Source
from gateway.lanes.chunked import ChunkedDecoder
from gateway.lanes.detached import Detached, DetachedBytes, DetachedChunks
from gateway.lanes.ends import SocketEnd, drain_whole, is_plain

__all__ = [
    "Carrier",
    "ChunkedDecoder",
    "Detached",
    "DetachedBytes",
    "DetachedChunks",
    "Lane",
    "Lanes",
    "PulledBody",
    "Sink",
    "SocketEnd",
    "Source",
    "drain_whole",
    "is_plain",
]
