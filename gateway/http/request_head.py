"""Which request heads are refused, and the target of the others. Pure."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders

MAX_HEAD_BYTES: Final = 64 * 1024
#: Hosts that were found valid are remembered up to this length: that of a name and its port.
_MAX_REMEMBERED_BYTES: Final = 260
# RFC 3986 section 3.2.2: a registered name or IPv4 address, or an IP literal; then RFC 9110's optional port.
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::([0-9]{0,5}))?")
_ABSOLUTE: Final = re.compile(r"(?i:https?)://([^/?#]*)([^#]*)")
_MAX_PORT: Final = 65535


class Target(NamedTuple):
    """The components of a request target: path and query exactly as sent, and the host."""

    path: str
    #: With its question mark, so that an empty query is preserved; "" if there is none.
    query: str
    #: The Host header as sent, or the authority of an absolute-form target.
    authority: bytes
    #: Lower case, without port.
    host: str


def check_message(version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> None:
    """Refuse a head whatever its target means. Raises Fault.

    aiohttp's parser refuses heads with a wrong syntax; this function and `check_target` refuse those that it accepts
    although RFC 9112 sections 2.3, 3.2 and 6.1 do not.
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


def check_target(version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> Target:
    """Return the target of a request, with the host that it is for. Raises Fault for an invalid one."""
    hosts = headers.all(b"host")
    if len(hosts) > 1 or (not hosts and version >= (1, 1)):
        raise Fault(FaultKind.BAD_HOST, f"The request has {len(hosts)} Host headers: send exactly one.")
    authority = hosts[0] if hosts else b""
    if "#" in target:
        raise Fault(FaultKind.BAD_TARGET, "The request target has a fragment: remove '#' and what follows.")
    if target.startswith("/"):
        pass
    elif absolute := _ABSOLUTE.fullmatch(target):
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
    else:
        raise Fault(
            FaultKind.BAD_TARGET,
            "The request target does not begin with a slash (RFC 9112 section 3.2.1): write /path.",
        )
    host = check_host(authority)
    path, mark, query = target.partition("?")
    return Target(path, mark + query, authority, host)


def check_host(authority: bytes) -> str:
    """Return the host of a Host header, in lower case and without port. Raises Fault BAD_HOST (RFC 9112 3.2)."""
    return _find_host(authority) if len(authority) > _MAX_REMEMBERED_BYTES else _remembered_host(authority)


def _find_host(authority: bytes) -> str:
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


_remembered_host: Final = functools.lru_cache(maxsize=1024)(_find_host)
