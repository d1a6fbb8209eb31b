"""The head of an upstream request."""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.http.framing import Framing

#: RFC 9110 section 9.2.2, and QUERY, which is safe (draft-ietf-httpbis-safe-method-w-body).
_IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY"})


class RequestHead(NamedTuple):
    """The head of an upstream request, for any endpoint."""

    method: str
    #: Path and query as they go on the wire.
    target: str
    #: Host header; None for the endpoint's own.
    host: bytes | None
    #: Further headers in wire form, each with its CRLF.
    lines: bytes
    #: None without a body.
    framing: Framing | None

    def encode(self, authority: bytes) -> bytes:
        """Return the head in wire form, for an endpoint with this authority."""
        return b"%b%b\r\n%b%b\r\n" % (
            f"{self.method} {self.target} HTTP/1.1\r\nHost: ".encode("latin-1"),
            self.host or authority,
            self.lines,
            self.framing.line if self.framing is not None else b"",
        )

    @property
    def is_chunked(self) -> bool:
        """Whether the body is sent in the chunked coding."""
        return self.framing is not None and self.framing.is_chunked

    @property
    def is_idempotent(self) -> bool:
        """Whether the request may be sent twice: its method says so."""
        return self.method in _IDEMPOTENT_METHODS
