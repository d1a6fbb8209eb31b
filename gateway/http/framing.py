"""How the body of an upstream request is framed (RFC 9112 section 6)."""

from __future__ import annotations

from typing import NamedTuple

from gateway.config import FramingMode
from gateway.errors import Fault, FaultKind


class Framing(NamedTuple):
    """The framing of one body: `length` bytes, or chunked where it is None."""

    length: int | None

    @property
    def is_chunked(self) -> bool:
        """Whether the body is sent in the chunked coding."""
        return self.length is None

    @property
    def line(self) -> bytes:
        """The header that frames the body, in wire form."""
        return b"Transfer-Encoding: chunked\r\n" if self.length is None else b"Content-Length: %d\r\n" % self.length


def choose_framing(mode: FramingMode, length: int | None) -> Framing:
    """Return the framing of a body of `length` bytes, None if it is not known before its end.

    Raises Fault LENGTH_REQUIRED (411) where the upstream takes no chunked body.
    """
    if length is not None and mode != "chunked":
        return Framing(length)
    if mode == "length_required":
        raise Fault(
            FaultKind.LENGTH_REQUIRED,
            "The upstream takes no chunked body, and the length of this one is not known before it ends: send "
            "Content-Length, and in a form its fields first and then one file.",
        )
    return Framing(None)
