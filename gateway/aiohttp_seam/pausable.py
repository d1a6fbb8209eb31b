"""Stop receiving a body through its transport, so that the rest of it can be read from the socket.

aiohttp's own `pause_reading` is flow control: the next read of the stream resumes it. `_pause_reading_for_buffer` is a
second, independent pause that only `_resume_reading_for_buffer` ends (new in aiohttp 3.14.4, verified up to 3.14.5).
Delete this when aiohttp has a public call for it, or hands out the socket of a body.
"""

from __future__ import annotations

import asyncio

from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader

from gateway.aiohttp_seam.transports import is_plain_tcp


class PausableStream:
    """A body's stream, and the connection it is received on.

    Lifecycle; the body object (RequestBody, UpstreamResponse) makes one per pause, the pump decides when:

      state     call              effect                                               next state
      --------  ----------------  ---------------------------------------------------  ----------------------------
      flowing   pause()           stop receiving through the transport                 paused; flowing if it
                                                                                       returned False
      paused    fetch_buffered()  let the parser put what it still holds into the      paused
                                  stream; return whether a read returns at once
      paused    (stream read)     return buffered data; does not resume receiving      paused
      paused    take_transport()       return the transport, whose socket now belongs to    detached; paused if it
                                  the caller. fetch_buffered() must have been False    returned None (lost)
      paused,   resume()          receive through the transport again. A response      flowing
      detached                    that was read to its end below the parser needs
                                  detach_parser() before

    The connection may be lost in every state; resume() is valid then, too. No call may be made in state flowing but
    pause(). Not enforced: the calls are few, but on every large transfer.
    """

    __slots__ = ("_protocol", "_stream")

    def __init__(self, protocol: BaseProtocol, stream: StreamReader) -> None:
        self._protocol = protocol
        self._stream = stream

    def pause(self) -> bool:
        """Stop receiving. Return False, with nothing changed, if the body has ended or this is not plain TCP."""
        if self._stream.is_eof() or not is_plain_tcp(self._protocol.transport):
            return False
        self._protocol._pause_reading_for_buffer()
        return True

    def fetch_buffered(self) -> bool:
        """Put what the parser holds into the stream; return whether a read returns, or raises, without waiting."""
        stream = self._stream
        if not stream._buffer and self._protocol._reading_paused:
            # Paused by flow control, the parser keeps its unparsed data until reading is resumed.
            self._protocol.resume_reading()
        return bool(stream._buffer) or stream.exception() is not None

    def take_transport(self) -> asyncio.Transport | None:
        """Return the transport, whose socket the caller may read now; None if the connection is lost."""
        return self._protocol.transport

    def resume(self) -> None:
        """Receive through the transport again, unless aiohttp's flow control is pausing it too."""
        if self._protocol._buffer_paused:
            self._protocol._resume_reading_for_buffer()


def is_reading_paused(protocol: BaseProtocol) -> bool:
    """Return whether aiohttp's flow control has paused a connection: its body was not read. Verified up to 3.14.5."""
    return protocol._reading_paused
