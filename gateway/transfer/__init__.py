"""Bodies in flight: one `Transfer` per body and direction, and the lanes that move its bytes.

`Carrier` is the one place where the lane of a transfer is chosen. Behaviour, counting and watching are the same on
each: a lane only replaces what a pull reads from and where a chunk is written to.

- splice: nothing needs to see the bytes; the kernel moves them through a pipe and Python only counts.
- copy, direct: something sees them (a filter), so they come in as chunks, but straight from the socket and straight to
  the other, past aiohttp's parser, its queue and asyncio's buffers.
  A chunked upload is decoded here and sent in chunks of ours, as large as what came at once. A body that an action
  pulls in pieces of its own (to disk, file by file, remade) comes in this way too.
- copy: through aiohttp's streams: TLS, chunked answers, short bodies, whatever is not a plain socket.
"""

from gateway.transfer.pump import BodyReader, Carrier, Lane, Lanes, Sink, Source
from gateway.transfer.raw_body import ChunkedRawBody, RawBody, SizedRawBody
from gateway.transfer.raw_socket import RawSocket, drain_whole, is_plain

__all__ = [
    "BodyReader",
    "Carrier",
    "ChunkedRawBody",
    "Lane",
    "Lanes",
    "RawBody",
    "RawSocket",
    "Sink",
    "SizedRawBody",
    "Source",
    "drain_whole",
    "is_plain",
]
