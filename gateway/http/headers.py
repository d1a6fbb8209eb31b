"""Rules for headers: which are forwarded, which the gateway sets, and which request heads are refused.

Headers are lists of (name, value) bytes as received, so that order, case, duplicates and bytes outside ASCII are
preserved. Received headers are never modified; outgoing headers are new lists. Pure: no await, no aiohttp.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from gateway import PSEUDONYM
from gateway.config.section import Network
from gateway.errors import Fault, FaultKind

Header = tuple[bytes, bytes]
Headers = Sequence[Header]

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
_VIA: Final = f"1.1 {PSEUDONYM}".encode()
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# RFC 3986 section 3.2.2: a registered name or IPv4 address, or an IP literal; then RFC 9110's optional port.
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::([0-9]{0,5}))?")
_ABSOLUTE: Final = re.compile(r"(?i:https?)://([^/?#]*)([^#]*)")
_MAX_PORT: Final = 65535
MAX_HEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """The components of a request target: path and query exactly as sent, and the host."""

    path: str
    #: With its question mark, so that an empty query is preserved; "" if there is none.
    query: str
    #: The Host header as sent, or the authority of an absolute-form target.
    authority: bytes
    #: Lower case, without port.
    host: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The identifiers of an exchange: X-Request-Id and traceparent."""

    request_id: bytes
    traceparent: bytes
    #: Whether traceparent continues the client's trace, so that its tracestate is kept.
    is_continued: bool


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """The client's address, scheme and host; `is_trusted` is set if the peer is in `trusted_proxies`."""

    client: str
    is_trusted: bool
    scheme: bytes
    authority: bytes


class ReceivedHeaders:
    """The headers of a received head, in order. Every name is converted to lower case once.

    Iterating yields (name, value) as received.
    """

    __slots__ = ("_headers", "_values", "keys")

    def __init__(self, headers: Iterable[Header]) -> None:
        self._headers = tuple(headers)
        values: dict[bytes, list[bytes]] = {}
        keys: list[bytes] = []
        for name, value in self._headers:
            key = name.lower()
            keys.append(key)
            if key in values:
                values[key].append(value)
            else:
                values[key] = [value]
        self._values = values
        #: The names in lower case, in order.
        self.keys = keys

    @property
    def size_bytes(self) -> int:
        """Their size on the wire, line breaks included."""
        return sum(map(len, itertools.chain.from_iterable(self._headers))) + 4 * len(self._headers)

    def __iter__(self) -> Iterator[Header]:
        """Iterate over (name, value)."""
        return iter(self._headers)

    def all(self, key: bytes) -> Sequence[bytes]:
        """Return the values of all headers with that name (lower case), in order."""
        return self._values.get(key, ())

    def joined(self, key: bytes) -> bytes | None:
        """Return the values of that name (lower case) joined by commas (RFC 9110 section 5.2), or None."""
        values = self._values.get(key)
        return b", ".join(values) if values else None

    def first(self, key: bytes) -> bytes | None:
        """Return the first value of that name (lower case), or None."""
        values = self._values.get(key)
        return values[0] if values else None


def peer_address(text: str) -> str:
    """Return the address of a peer as it is logged, compared and sent on: without zone, IPv4 as such.

    A socket that is bound to `[::]` sees IPv4 peers as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
    """
    if ":" not in text:
        return text
    address = ipaddress.IPv6Address(text.partition("%")[0])
    return str(address.ipv4_mapped or address)


def is_trusted(client: str, networks: Sequence[Network]) -> bool:
    """Return whether a peer's address is in one of the trusted networks."""
    if not networks or not client:
        return False
    address = ipaddress.ip_address(client)
    return any(address.version == network.version and address in network for network in networks)


def check_head(version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> Target:
    """Return the target of a valid request head. Raises Fault for an invalid one.

    aiohttp's parser refuses heads with a wrong syntax; this function refuses those that it accepts although
    RFC 9112 sections 2.3, 3.2 and 6.1 do not.
    """
    if version not in ((1, 0), (1, 1)):
        # aiohttp treats request lines with HTTP/2.0 and HTTP/0.9 like HTTP/1.1.
        raise Fault(FaultKind.BAD_REQUEST, f"HTTP/{version[0]}.{version[1]} is not supported: use HTTP/1.1.")
    if method in ("CONNECT", "TRACE"):
        # RFC 9110 section 9.3.8: the response to TRACE contains the request's headers, credentials included.
        raise Fault(
            FaultKind.METHOD_NOT_ALLOWED,
            f"The gateway does not forward {method}: use another method.",
            headers=_ALLOWED_METHODS,
        )
    size = len(target) + headers.size_bytes
    if size > MAX_HEAD_BYTES:
        raise Fault(
            FaultKind.HEAD_TOO_LARGE,
            f"The request head has {size} bytes, the limit is {MAX_HEAD_BYTES}: send fewer or shorter headers.",
        )
    if codings := headers.all(b"transfer-encoding"):
        _check_codings(version, codings, headers)
    return _check_target(version, method, target, headers)


_ALLOWED_METHODS: Final = ((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)


def _check_codings(version: tuple[int, int], codings: Sequence[bytes], headers: ReceivedHeaders) -> None:
    if version < (1, 1):
        # > A server or client that receives an HTTP/1.0 message containing a Transfer-Encoding header field MUST treat
        # > the message as if the framing is faulty (RFC 9112 section 6.1).
        raise Fault(FaultKind.BAD_FRAMING, "HTTP/1.0 has no Transfer-Encoding: use HTTP/1.1, or send Content-Length.")
    if headers.all(b"content-length"):
        raise Fault(
            FaultKind.BAD_FRAMING, "The request has both Transfer-Encoding and Content-Length: send one of them."
        )
    if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
        # Stricter than RFC 9112 section 6.1, which has 501 for unknown codings: clients do not use others, and a
        # coding that only one of gateway and upstream decodes allows request smuggling.
        raise Fault(FaultKind.BAD_FRAMING, "Transfer-Encoding is not exactly `chunked`: send chunked, once.")


def _check_target(version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> Target:
    hosts = headers.all(b"host")
    if len(hosts) > 1 or (not hosts and version >= (1, 1)):
        raise Fault(FaultKind.BAD_HOST, f"The request has {len(hosts)} Host headers: send exactly one.")
    authority = hosts[0] if hosts else b""
    if "#" in target:
        raise Fault(FaultKind.BAD_TARGET, "The request target has a fragment: remove '#' and what follows.")
    if absolute := _ABSOLUTE.fullmatch(target):
        # > When an origin server receives a request with an absolute-form of request-target, the origin server MUST
        # > ignore the received Host header field (if any) and instead use the host information of the request-target.
        # RFC 9112 section 3.2.2
        check_host(authority)
        authority = absolute[1].encode("latin-1", "replace")
        if not authority:
            raise Fault(FaultKind.BAD_TARGET, "The absolute-form target has no host: write http://host/path.")
        target = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    elif target == "*" and method == "OPTIONS":
        pass
    elif not target.startswith("/"):
        raise Fault(
            FaultKind.BAD_TARGET,
            "The request target does not begin with a slash (RFC 9112 section 3.2.1): write /path.",
        )
    host = check_host(authority)
    path, mark, query = target.partition("?")
    return Target(path, mark + query, authority, host)


def check_host(authority: bytes) -> str:
    """Return the host of a Host header, in lower case and without port. Raises Fault BAD_HOST (RFC 9112 3.2)."""
    found = _HOST.fullmatch(authority)
    if found is None or (found[2] and int(found[2]) > _MAX_PORT):
        raise Fault(
            FaultKind.BAD_HOST, "The Host header is not host[:port] (RFC 9112 section 3.2): send a name or address."
        )
    if found[1].startswith(b"["):
        try:
            ipaddress.IPv6Address(found[1][1:-1].decode())
        except ValueError:
            raise Fault(
                FaultKind.BAD_HOST, "The Host header has brackets without an IPv6 address: write [address]."
            ) from None
    return found[1].decode().lower()


def trace_context(headers: ReceivedHeaders, *, is_trusted: bool) -> Trace:
    """Return the client's request id and trace if it is trusted and they are valid, new ones otherwise."""
    request_id = headers.first(b"x-request-id") if is_trusted else None
    fresh = os.urandom(40).hex().encode()
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = fresh[:32]
    span = fresh[32:48]
    parent = headers.first(b"traceparent") if is_trusted else None
    if parent is not None and _TRACEPARENT.fullmatch(parent):
        # W3C Trace Context section 3.4: keep trace id and flags, set an own parent id.
        return Trace(request_id, parent[:36] + span + parent[52:], is_continued=True)
    return Trace(request_id, b"00-" + fresh[48:] + b"-" + span + b"-01", is_continued=False)


def end_to_end(headers: ReceivedHeaders) -> list[Header]:
    """Return the headers without the hop-by-hop ones and those that Connection lists (RFC 9110 section 7.6.1)."""
    return _without(headers, _HOP_BY_HOP | _nominated(headers))


def _nominated(headers: ReceivedHeaders) -> frozenset[bytes]:
    """Return the names that Connection lists. The framing headers are kept in any case: the body depends on them."""
    options = headers.all(b"connection")
    if not options:
        return _NO_NAMES
    return frozenset(option.strip().lower() for value in options for option in value.split(b",")) - _FRAMING


def _without(headers: ReceivedHeaders, dropped: frozenset[bytes]) -> list[Header]:
    return [header for key, header in zip(headers.keys, headers, strict=True) if key not in dropped]


def request_headers(headers: ReceivedHeaders, client_info: ClientInfo, trace: Trace) -> list[Header]:
    """Return the client's headers as sent upstream, with X-Forwarded-*, Forwarded, trace headers and Via.

    Content-Length, Host and Expect are not included: the framing and the endpoint determine them.
    """
    if client_info.is_trusted:
        dropped = _NOT_UPSTREAM if trace.is_continued else _NOT_UPSTREAM_UNTRACED
    else:
        dropped = _NOT_UPSTREAM_UNTRUSTED
    if nominated := _nominated(headers):
        dropped |= nominated
    kept = [
        header
        for key, header in zip(headers.keys, headers, strict=True)
        if key not in dropped and (b"_" not in key or key.replace(b"_", b"-") not in dropped)
    ]
    return [
        *kept,
        *_forwarding_headers(headers, client_info),
        (b"X-Request-Id", trace.request_id),
        (b"traceparent", trace.traceparent),
        (b"Via", _VIA),
    ]


def _forwarding_headers(headers: ReceivedHeaders, client_info: ClientInfo) -> list[Header]:
    client = client_info.client.encode()
    element = _forwarded_element(client_info)
    if not client_info.is_trusted:
        return [
            (b"X-Forwarded-For", client),
            (b"X-Forwarded-Proto", client_info.scheme),
            (b"X-Forwarded-Host", client_info.authority),
            (b"Forwarded", element),
        ]
    return [
        (b"X-Forwarded-For", b", ".join([*headers.all(b"x-forwarded-for"), client])),
        (b"X-Forwarded-Proto", headers.first(b"x-forwarded-proto") or client_info.scheme),
        (b"X-Forwarded-Host", headers.first(b"x-forwarded-host") or client_info.authority),
        (b"Forwarded", b", ".join([*headers.all(b"forwarded"), element])),
    ]


def _forwarded_element(client_info: ClientInfo) -> bytes:
    # RFC 7239 section 6: an IPv6 address is in brackets and quotes; a host is in quotes because of its colon.
    client = f'"[{client_info.client}]"' if ":" in client_info.client else client_info.client
    host = client_info.authority.replace(b"\\", b"").replace(b'"', b"")
    return b"for=" + client.encode() + b';host="' + host + b'";proto=' + client_info.scheme


def response_headers(headers: ReceivedHeaders, trace: Trace) -> list[Header]:
    """Return an upstream's headers as sent to the client, without Content-Length: the sender of the body adds it."""
    nominated = _nominated(headers)
    kept = _without(headers, _NOT_DOWNSTREAM | nominated if nominated else _NOT_DOWNSTREAM)
    if headers.first(b"date") is None or b"date" in nominated:
        # > A recipient with a clock that receives a response message without a Date header field MUST record the
        # > time it was received and append a corresponding Date header field to the message's header section if it
        # > is cached or forwarded downstream (RFC 9110 section 6.6.1).
        kept.append((b"Date", _date(int(time.time()))))  # noqa: TID251 (the date, not a duration)
    kept.append((b"Via", _VIA))
    if headers.first(b"x-request-id") is None or b"x-request-id" in nominated:
        kept.append((b"X-Request-Id", trace.request_id))
    return kept


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> bytes:
    """Return the value of a Date header; it is formatted once per second."""
    return formatdate(seconds, usegmt=True).encode()


def default_headers(trace: Trace) -> list[Header]:
    """Return the headers of every response that the gateway itself generates: Date, Server, X-Request-Id."""
    return [
        (b"Date", _date(int(time.time()))),  # noqa: TID251 (the date, not a duration)
        (b"Server", PSEUDONYM.encode()),
        (b"X-Request-Id", trace.request_id),
    ]


def encode_head(start_line: bytes, headers: Headers) -> bytes:
    """Return a head in wire form. Names and values must not contain CR or LF, which holds for parsed headers."""
    return b"\r\n".join([start_line, *map(b": ".join, headers), b"", b""])
