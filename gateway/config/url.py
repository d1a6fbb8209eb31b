"""Absolute http(s) URLs: one parse for the config's prefixes, for what is compared with them and what is connected to.

The host is canonical: an address in any form that a resolver or a browser would take for one (octal, hexadecimal,
short, percent-encoded or full-width digits, a trailing dot) is that address, and a name is in lower case. So no check
sees another host than the code that connects. As the WHATWG's URL standard, section 3.5, except that names have to be
ASCII: what their Unicode form is encoded to depends on the version of IDNA.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urljoin

from gateway.config.values import Endpoint

_URL: Final = re.compile(r"(https?)://([^/?#\\@]+?)(?::([0-9]{0,5}))?(/[^?#\\]*)?(\?[^#]*)?", re.IGNORECASE)
#: What a request target may consist of.
_TARGET: Final = re.compile(r"[!-~]*")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+")
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)", re.DOTALL)
#: Full stops of UTS 46; NFKC has turned the full-width and half-width ones into these two.
_IDNA_DOT: Final = "\N{IDEOGRAPHIC FULL STOP}"
_MAX_NAME: Final = 253
_MAX_PORT: Final = 65535
_PORTS: Final = {"http": 80, "https": 443}
_IPV4_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class Url:
    """A URL with the host in its canonical form; path and query are as they were written."""

    endpoint: Endpoint
    #: Begins with a slash.
    path: str
    #: With its question mark; "" without a query.
    query: str

    @property
    def target(self) -> str:
        """The request target."""
        return self.path + self.query

    def __str__(self) -> str:
        """Return the URL."""
        return f"{self.endpoint}{self.target}"


def parse_url(text: str) -> Url:
    """Parse http(s)://host[:port][/path][?query]. Raises ValueError for anything else, user names included."""
    found = _URL.fullmatch(text)
    if found is None or not _TARGET.fullmatch((found[4] or "") + (found[5] or "")):
        raise ValueError("not an http(s) URL")
    scheme = found[1].lower()
    port = int(found[3] or _PORTS[scheme])
    if not 0 < port <= _MAX_PORT:
        raise ValueError("not a port")
    return Url(Endpoint(scheme, canonical_host(found[2]), port), found[4] or "/", found[5] or "")


def resolve_reference(base: Url, reference: str) -> Url:
    """Return the URL that a reference in a resource leads to (RFC 3986 section 5). Raises ValueError if it is none.

    White space, controls and backslashes are refused: `urljoin` drops some, and browsers read the last as slashes.
    """
    if not _TARGET.fullmatch(reference) or "\\" in reference:
        raise ValueError("not a URI reference")
    return parse_url(urljoin(str(base), reference).partition("#")[0])


def canonical_host(text: str) -> str:
    """Return an address in its usual form without brackets or zone, or a name in lower case without a final dot.

    Raises ValueError for what is neither.
    """
    host = unquote(text, errors="strict")
    host = unicodedata.normalize("NFKC", host).replace(_IDNA_DOT, ".").lower()
    if host.startswith("["):
        if not host.endswith("]"):
            raise ValueError("no closing bracket")
        return str(ipaddress.IPv6Address(host[1:-1].partition("%")[0]))
    host = host.removesuffix(".")
    if _ENDS_IN_NUMBER.fullmatch(host):
        return _canonical_ipv4(host)
    if len(host) > _MAX_NAME or not all(_is_label(label) for label in host.split(".")):
        raise ValueError("not a host name")
    return host


def _canonical_ipv4(host: str) -> str:
    """Return the address of one to four numbers, each decimal, octal or hexadecimal; the last fills the rest."""
    parts = host.split(".")
    if len(parts) > _IPV4_PARTS or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError("not an IPv4 address")
    *numbers, last = map(_parse_number, parts)
    if any(number > 255 for number in numbers) or last >= 256 ** (5 - len(parts)):  # noqa: PLR2004 (a byte)
        raise ValueError("not an IPv4 address")
    return str(ipaddress.IPv4Address(sum(number << 8 * (3 - index) for index, number in enumerate(numbers)) + last))


def _parse_number(part: str) -> int:
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)


def _is_label(label: str) -> bool:
    if not _LABEL.fullmatch(label):
        return False
    if not label.startswith("xn--"):
        return True
    # A label that says it is Punycode and is not: resolvers and certificates disagree about it.
    try:
        decoded = label[4:].encode().decode("punycode")
        return not decoded.isascii() and decoded.encode("punycode") == label[4:].encode()
    except UnicodeError:
        return False
