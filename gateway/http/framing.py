"""How the body of an upstream request is framed (RFC 9112 section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.config import FramingMode
from gateway.errors import Fault, FaultKind
from gateway.http.headers import Header


@dataclass(frozen=True, slots=True)
class Framing:
    """The framing of one body: `length` bytes, or chunked where it is None."""

    length: int | None

    @property
    def is_chunked(self) -> bool:
        """Whether the body is sent in the chunked coding."""
        return self.length is None

    def headers(self) -> list[Header]:
        """Return the header that frames the body."""
        if self.length is None:
            return [(b"Transfer-Encoding", b"chunked")]
        return [(b"Content-Length", b"%d" % self.length)]


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
