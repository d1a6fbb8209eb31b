"""Who may ask the ops port for what. Pure.

Health and metrics are open: probes and scrapers come with any Host. For everything else, but the token for the files of
the live page, which asks for it:

- Host must be an IP address, `localhost` or in `ops.allow_hosts`. A web page may point a DNS name of its own at this
  machine and then read the port as its own origin (DNS rebinding); the browser sends that name as Host.
- What changes something is refused for requests that a browser made for a page of another origin (CSRF).
- /drain changes something with GET, since preStop hooks of Kubernetes have no other method, and any page can make a
  browser send a GET, for example as an image. Browsers send `Origin` and `Sec-Fetch-*` with few of those, and none of
  the latter over plain HTTP to another machine. So /drain is refused for any request with a header of browsers.
  Node's `fetch` sends two of them: its pair is served, see `_NODE_HEADERS`.
- With `ops.token`, a bearer token (RFC 6750).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.config.model import Ops

_OPEN: Final = frozenset({"/metrics", "/healthz", "/readyz"})
_READING: Final = frozenset({"GET", "HEAD"})
_DRAIN: Final = "/drain"
#: A browser sends at least the last, whatever the page says; the kubelet, curl and wget send none of them.
_BROWSER_HEADERS: Final = ("Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Accept-Language")
#: Of these, what Node's fetch (undici) sends, with `Accept-Language: *`. Browsers send Sec-Fetch-Site and -Dest with
#: Sec-Fetch-Mode, or none of the three. A page can set Accept-Language, but no Sec-Fetch-Mode (Fetch section 2.2.2).
_NODE_HEADERS: Final = ["Sec-Fetch-Mode", "Accept-Language"]
#: Fetch Metadata: the user, or a page of the same origin.
_OWN_SITES: Final = frozenset({"none", "same-origin"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused: its status, and a text for the client."""

    status: int
    text: str


def find_refusal(method: str, path: str, headers: Mapping[str, str], settings: Ops) -> Refusal | None:
    """Return why a request must be refused, None if it may be served. `headers` ignores case."""
    if path in _OPEN:
        return None
    host = headers.get("Host", "")
    if not _is_known_host(host, settings.allow_hosts):
        return Refusal(403, f"Host {host!r} is not known here: ask by IP address, or add the name to ops.allow_hosts\n")
    if path == _DRAIN and (given := _find_browser_headers(headers)):
        return Refusal(403, f"/drain is not for browsers: use a preStop hook or curl, without {', '.join(given)}\n")
    if method not in _READING and _is_from_other_site(host, headers):
        return Refusal(403, "A page of another site may not ask for this\n")
    if not _is_file_of_page(path) and not _has_token(headers.get("Authorization", ""), settings):
        return Refusal(401, "This needs the token of ops.token: send Authorization: Bearer TOKEN\n")
    return None


def _find_browser_headers(headers: Mapping[str, str]) -> list[str]:
    """Return the names of the headers by which a request may be a browser's."""
    given = [name for name in _BROWSER_HEADERS if name in headers]
    is_from_node = given == _NODE_HEADERS and headers["Accept-Language"] == "*"
    return [] if is_from_node else given


def _is_file_of_page(path: str) -> bool:
    return path == "/" or path.startswith("/page/")


def _is_known_host(host: str, allowed: tuple[str, ...]) -> bool:
    name = _without_port(host).lower()
    if name == "localhost" or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _is_from_other_site(host: str, headers: Mapping[str, str]) -> bool:
    origin = headers.get("Origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return True
    return headers.get("Sec-Fetch-Site", "none") not in _OWN_SITES


def _has_token(authorization: str, settings: Ops) -> bool:
    token = settings.token.reveal() if settings.token is not None else ""
    if not token:
        return True
    scheme, _, given = authorization.partition(" ")
    # Compared as a whole: the time must not depend on how much of it is right.
    is_equal = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return scheme.lower() == "bearer" and is_equal
