"""Rules for headers: which are forwarded, and which the gateway sets.

Headers are lists of (name, value) bytes as received, so that order, case, duplicates and bytes outside ASCII are
preserved. Received headers are never modified. Outgoing ones are lines in wire form from the beginning, each with its
CRLF: those of a head that is received again are joined once. Pure: no await, no aiohttp.
"""

from __future__ import annotations

import enum
import functools
import itertools
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from email.utils import formatdate
from typing import Final, NamedTuple

from gateway import PSEUDONYM
from gateway.http.client import Client

Header = tuple[bytes, bytes]
Headers = Sequence[Header]

#: Values of Connection that name no further header and do not end the connection.
KEEP_ALIVE: Final = frozenset({b"keep-alive", b"Keep-Alive"})

#: Hop-by-hop headers of RFC 9110 section 7.6.1, and Proxy-Connection, which old clients still send.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: Headers that the gateway sets. WSGI turns `_` into `-`, so a WSGI upstream would trust a client's X_Forwarded_For;
#: nginx drops every name with an underscore for this reason, the gateway drops only these.
_SET_BY_GATEWAY: Final = frozenset(
    {
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"forwarded",
        b"x-request-id",
        b"traceparent",
    }
)
_FRAMING: Final = frozenset({b"content-length", b"expect", b"host"})
_NOT_UPSTREAM: Final = _HOP_BY_HOP | _FRAMING | _SET_BY_GATEWAY
#: tracestate is only valid together with the traceparent it was received with.
_NOT_UPSTREAM_UNTRACED: Final = _NOT_UPSTREAM | {b"tracestate"}
#: Set by proxies in front of the gateway; from other peers they are forged.
_NOT_UPSTREAM_UNTRUSTED: Final = _NOT_UPSTREAM_UNTRACED | {b"x-real-ip", b"x-forwarded-prefix", b"x-forwarded-port"}
_NOT_DOWNSTREAM: Final = _HOP_BY_HOP | {b"content-length"}
_NO_NAMES: Final[frozenset[bytes]] = frozenset()
_VIA_LINE: Final = f"Via: 1.1 {PSEUDONYM}\r\n".encode()
#: By name as received, those that were received before: few, and mostly the same.
_NAMES: Final[dict[bytes, _Name]] = {}
_MAX_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 64
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Origin(enum.IntEnum):
    """Where a request comes from. The greater the number, the fewer of its headers are trusted."""

    #: A peer of `trusted_proxies` whose trace is continued.
    TRACING_PROXY = 0
    #: Another one.
    PROXY = 1
    CLIENT = 2
    #: No origin.
    NOWHERE = 3


class Trace(NamedTuple):
    """The identifiers of an exchange: X-Request-Id and traceparent."""

    request_id: bytes
    traceparent: bytes
    #: Whether traceparent continues the client's trace, so that its tracestate is kept.
    is_continued: bool


class _Name(NamedTuple):
    """What the rules say of a header, from its name alone."""

    #: In lower case.
    key: bytes
    #: The origin of a request from which on it is not sent upstream.
    dropped_from: Origin
    #: Whether it is sent to the client.
    is_sent_downstream: bool


class _Downstream(NamedTuple):
    """What is sent to the client of the headers of a response."""

    lines: bytes
    has_date: bool
    has_request_id: bool


class ReceivedHeaders:
    """The headers of a received head, in order. Every name is looked up once.

    Iterating yields (name, value) as received.
    """

    __slots__ = ("_size_bytes", "downstream", "names", "pairs", "upstream", "values")

    def __init__(self, headers: Headers, size_bytes: int | None = None) -> None:
        """`size_bytes` is their size on the wire, line breaks included, where that is known."""
        self._size_bytes = size_bytes
        #: As received.
        self.pairs = headers
        values: dict[bytes, list[bytes]] = {}
        names: list[_Name] = []
        known = _NAMES
        for raw, value in headers:
            name = known.get(raw) or _look_up(raw)
            names.append(name)
            key = name.key
            if key in values:
                values[key].append(value)
            else:
                values[key] = [value]
        #: By name, in lower case.
        self.values = values
        #: Of each header, in order.
        self.names = names
        #: What is sent on of them, as far as that was asked for: upstream by the origin of the request, to the client.
        #: It is kept for heads that are received again.
        self.upstream: dict[Origin, bytes] = {}
        self.downstream: _Downstream | None = None

    @property
    def size_bytes(self) -> int:
        """Their size on the wire, line breaks included."""
        if self._size_bytes is not None:
            return self._size_bytes
        return sum(map(len, itertools.chain.from_iterable(self.pairs))) + 4 * len(self.pairs)

    def __iter__(self) -> Iterator[Header]:
        """Iterate over (name, value)."""
        return iter(self.pairs)

    def all(self, key: bytes) -> Sequence[bytes]:
        """Return the values of all headers with that name (lower case), in order."""
        return self.values.get(key, ())

    def joined(self, key: bytes) -> bytes | None:
        """Return the values of that name (lower case) joined by commas (RFC 9110 section 5.2), or None."""
        values = self.values.get(key)
        return b", ".join(values) if values else None

    def first(self, key: bytes) -> bytes | None:
        """Return the first value of that name (lower case), or None."""
        values = self.values.get(key)
        return values[0] if values else None


def trace_context(headers: ReceivedHeaders, *, is_trusted: bool) -> Trace:
    """Return the client's request id and trace if it is trusted and they are valid, new ones otherwise."""
    if not _UNUSED:
        _refill()
    fresh = _UNUSED.pop()
    if not is_trusted:
        return fresh
    request_id, parent = headers.first(b"x-request-id"), headers.first(b"traceparent")
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = fresh.request_id
    if parent is None or not _TRACEPARENT.fullmatch(parent):
        return Trace(request_id, fresh.traceparent, is_continued=False)
    # W3C Trace Context section 3.4: keep trace id and flags, set an own parent id.
    return Trace(request_id, parent[:36] + fresh.traceparent[36:52] + parent[52:], is_continued=True)


def _refill() -> None:
    """Make identifiers for as many as 64 exchanges: a system call for each cost 2 us."""
    digits = os.urandom(64 * 40).hex().encode()
    for at in range(0, len(digits), 80):
        parent = b"00-%b-%b-01" % (digits[at + 48 : at + 80], digits[at + 32 : at + 48])
        # Without the function of the class, which is written in Python.
        _UNUSED.append(tuple.__new__(Trace, (digits[at : at + 32], parent, False)))


#: Identifiers that no exchange has.
_UNUSED: Final[list[Trace]] = []
# A process and the one that it was forked from must not use the same.
os.register_at_fork(after_in_child=_UNUSED.clear)


def end_to_end(headers: ReceivedHeaders) -> list[Header]:
    """Return the headers without the hop-by-hop ones and those that Connection lists (RFC 9110 section 7.6.1)."""
    dropped = _HOP_BY_HOP | _nominated(headers)
    return [header for name, header in zip(headers.names, headers.pairs, strict=True) if name.key not in dropped]


def _nominated(headers: ReceivedHeaders) -> frozenset[bytes]:
    """Return the further names that Connection lists. The framing headers are kept: the body depends on them."""
    options = headers.all(b"connection")
    if len(options) == 1 and options[0] in KEEP_ALIVE:
        return _NO_NAMES
    names = frozenset(option.strip().lower() for value in options for option in value.split(b","))
    return names - _FRAMING - _HOP_BY_HOP


def request_lines(headers: ReceivedHeaders, client: Client, authority: bytes, trace: Trace) -> bytes:
    """Return the client's headers as sent upstream, with X-Forwarded-*, Forwarded, trace headers and Via.

    `authority` is the host that the client asks for. Content-Length, Host and Expect are not included: the framing and
    the endpoint determine them.
    """
    origin = Origin.CLIENT
    if client.is_trusted:
        origin = Origin.TRACING_PROXY if trace.is_continued else Origin.PROXY
    sent = headers.upstream.get(origin)
    if sent is None:
        sent = headers.upstream[origin] = _sent_upstream(headers, origin)
    return b"%b%bX-Request-Id: %b\r\ntraceparent: %b\r\n%b" % (
        sent,
        client.forwarding_lines(headers, authority),
        trace.request_id,
        trace.traceparent,
        _VIA_LINE,
    )


def _sent_upstream(headers: ReceivedHeaders, origin: Origin) -> bytes:
    """Return the headers of a request that are sent upstream as they were received."""
    sent = [header for name, header in zip(headers.names, headers.pairs, strict=True) if name.dropped_from > origin]
    if b"connection" in headers.values and (nominated := _nominated(headers)):
        sent = [header for header in sent if not _is_named(header[0].lower(), nominated)]
    return encode_lines(sent)


def _is_named(key: bytes, dropped: Collection[bytes]) -> bool:
    return key in dropped or (b"_" in key and key.replace(b"_", b"-") in dropped)


def response_lines(headers: ReceivedHeaders, trace: Trace) -> bytes:
    """Return an upstream's headers as sent to the client, without Content-Length: the sender of the body adds it."""
    sent = headers.downstream
    if sent is None:
        sent = headers.downstream = _sent_downstream(headers)
    lines = sent.lines
    if not sent.has_date:
        # > A recipient with a clock that receives a response message without a Date header field MUST record the
        # > time it was received and append a corresponding Date header field to the message's header section if it
        # > is cached or forwarded downstream (RFC 9110 section 6.6.1).
        lines += _date_line(int(time.time()))  # noqa: TID251 (the date, not a duration)
    if sent.has_request_id:
        return lines + _VIA_LINE
    return b"%b%bX-Request-Id: %b\r\n" % (lines, _VIA_LINE, trace.request_id)


def _sent_downstream(headers: ReceivedHeaders) -> _Downstream:
    """Return what is sent to the client of the headers of a response as it was received."""
    nominated = _nominated(headers) if b"connection" in headers.values else _NO_NAMES
    sent = [header for name, header in zip(headers.names, headers.pairs, strict=True) if name.is_sent_downstream]
    if nominated:
        sent = [header for header in sent if header[0].lower() not in nominated]
    names = headers.values.keys() - nominated
    return _Downstream(encode_lines(sent), b"date" in names, b"x-request-id" in names)


@functools.lru_cache(maxsize=1)
def _date_line(seconds: int) -> bytes:
    """Return a Date header; it is formatted once per second."""
    return f"Date: {formatdate(seconds, usegmt=True)}\r\n".encode()


def default_lines(trace: Trace) -> bytes:
    """Return the headers of every response that the gateway itself generates: Date, Server, X-Request-Id."""
    date = _date_line(int(time.time()))  # noqa: TID251 (the date, not a duration)
    return b"%bServer: %b\r\nX-Request-Id: %b\r\n" % (date, PSEUDONYM.encode(), trace.request_id)


def encode_lines(headers: Iterable[Header]) -> bytes:
    """Return header lines in wire form. Names and values must not contain CR or LF, which holds for parsed headers."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _look_up(raw: bytes) -> _Name:
    """Return what the rules say of a name, and remember it."""
    key = raw.lower()
    dropped_from = Origin.NOWHERE
    for origin, names in reversed(_DROPPED.items()):
        if _is_named(key, names):
            dropped_from = origin
    name = _Name(key, dropped_from, key not in _NOT_DOWNSTREAM)
    if len(raw) <= _MAX_NAME_BYTES:
        if len(_NAMES) >= _MAX_NAMES:
            # A client that invents names costs all of them a look-up.
            _NAMES.clear()
        _NAMES[raw] = name
    return name


#: What is not sent upstream, by the origin of the request. Each has the names of the ones before.
_DROPPED: Final = {
    Origin.TRACING_PROXY: _NOT_UPSTREAM,
    Origin.PROXY: _NOT_UPSTREAM_UNTRACED,
    Origin.CLIENT: _NOT_UPSTREAM_UNTRUSTED,
}
