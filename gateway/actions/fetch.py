"""fetch: an allowed URL streamed to the client. Never an open proxy: URLs are on an allow-list, addresses are guarded.

The client's credentials are not sent to the origin, and the origin's cookies are not sent to the client.
"""

from __future__ import annotations

from typing import Final

from gateway import PSEUDONYM, __version__
from gateway.actions.policies import response_policies
from gateway.actions.relay import relay
from gateway.config import Route
from gateway.config.actions import Fetch
from gateway.config.url import Url, parse_url, resolve_reference
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders, encode_lines
from gateway.http.routing import RouteMatch
from gateway.transfer import Lanes, Timers
from gateway.upstream import AddressGuard, AllowList, RequestHead, Resolver, UpstreamClient, UpstreamResponse, Whose

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Request headers of a download that are passed on: ranges, conditions and preferences.
_PASSED_ON: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    }
)
#: Response headers that are not passed on.
_KEPT_BACK: Final = frozenset({b"set-cookie", b"set-cookie2", b"location", b"www-authenticate", b"alt-svc"})


class FetchAction:
    """The action of one route."""

    def __init__(self, route: Route, config: Fetch, lanes: Lanes, timers: Timers, resolver: Resolver) -> None:
        self._lanes = lanes
        self._allow = AllowList(config.allow)
        self._guard = AddressGuard(allows_private=config.private_networks == "allow")
        key = f"routes.{route.name}.fetch.timeouts"
        whose = Whose("the server of the URL", "the URL", key)
        self._client = UpstreamClient(config.timeouts, timers, whose, resolver, self._guard)
        self._policies = response_policies(route, config.timeouts.idle, f"{key}.idle")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault."""
        exchange.check_expectation()
        url = self._check_requested(f"{matched.rest}{exchange.target.query}")
        for _ in range(_MAX_REDIRECTS + 1):
            exchange.record_endpoint(url.endpoint)
            head = _make_head(exchange, url)
            async with await self._client.send(url.endpoint, head, on_connected=exchange.record_connected) as response:
                location = _redirect(response)
                if location is None:
                    response.headers = ReceivedHeaders(
                        [header for header in response.headers if header[0].lower() not in _KEPT_BACK]
                    )
                    await relay(exchange, response, self._policies, self._lanes)
                    return
                url = self._follow(url, location)
        raise Fault(FaultKind.BAD_REDIRECT, f"The URL redirects more than {_MAX_REDIRECTS} times.")

    def _check_requested(self, text: str) -> Url:
        """Return the URL the client asks for. Raises Fault URL_FORBIDDEN or ADDRESS_FORBIDDEN."""
        try:
            url = parse_url(text)
        except ValueError:
            raise Fault(
                FaultKind.URL_FORBIDDEN,
                "What follows the route's prefix is not an http(s) URL: write https://host/path.",
            ) from None
        self._guard.check_url(url)
        self._allow.check(url)
        return url

    def _follow(self, url: Url, location: bytes) -> Url:
        """Return the URL a redirect leads to. Raises Fault BAD_REDIRECT or ADDRESS_FORBIDDEN."""
        try:
            target = resolve_reference(url, location.decode("latin-1"))
        except ValueError:
            raise Fault(FaultKind.BAD_REDIRECT, "The URL redirects to what is not an http(s) URL.") from None
        self._guard.check_url(target)
        try:
            self._allow.check(target)
        except Fault as fault:
            raise Fault(
                FaultKind.BAD_REDIRECT, "The URL redirects to one that the route's fetch.allow does not name."
            ) from fault
        return target


def _redirect(response: UpstreamResponse) -> bytes | None:
    return response.headers.first(b"location") if response.status in _REDIRECTS else None


def _make_head(exchange: Exchange, url: Url) -> RequestHead:
    headers = [
        (b"User-Agent", f"{PSEUDONYM}/{__version__}".encode()),
        *((name, value) for name, value in exchange.headers if name.lower() in _PASSED_ON),
    ]
    return RequestHead(exchange.method, url.target, host=None, lines=encode_lines(headers), framing=None)
