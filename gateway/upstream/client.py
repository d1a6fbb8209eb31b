"""Sends requests to endpoints over kept connections, and turns aiohttp's exceptions into faults with the right blame.

aiohttp reports a failure of the request's body as the upstream's (an OSError of the source becomes ClientOSError), so
the request is asked for its own failure first.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.aiohttp_seam import ClientConnection, KeptConnections, LiveConnector, PoolRequest
from gateway.config.upstream import UpstreamTimeouts
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.http.response_head import (
    check_response_framing,
    is_interim,
)
from gateway.observe.stats import UpstreamStats
from gateway.transfer import Timers, descriptor_fault, exhaustion_fault, open_socket
from gateway.upstream.guard import AddressForbiddenError, AddressGuard, address_forbidden
from gateway.upstream.request import HeldBody, OutgoingBody, UpstreamRequest
from gateway.upstream.request_head import RequestHead
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import UpstreamResponse

#: Below the shortest idle timeout of servers that gateways are used with (uvicorn and Node: 5 s).
_KEEPALIVE_SECONDS: Final = 4.0
#: The reason of a retry after a kept connection that the upstream had closed.
_STALE_CONNECTION: Final = "stale_connection"


class Unanswered(Fault):
    """UPSTREAM_CLOSED: the connection ended before a byte of the response came."""

    def __init__(self, detail: str, request: UpstreamRequest, *, was_kept: bool) -> None:
        super().__init__(FaultKind.UPSTREAM_CLOSED, detail)
        #: Whether the connection had been kept after a request before.
        self.was_kept = was_kept
        #: Whether the request may be sent a second time, and the body to send then.
        self.is_repeatable = request.is_repeatable
        self.body = request.held_body


class Unreplaced(Fault):
    """There is no new connection in place of a kept one that had ended. It has the fault of connecting."""

    def __init__(self, fault: Fault, *, is_repeatable: bool, body: HeldBody | None = None) -> None:
        retry = fault.retry_after_seconds
        super().__init__(fault.kind, fault.detail, reason=fault.reason, retry_after_seconds=retry)
        #: Whether the request may go to another endpoint, and the body to send there: the client's own was read.
        self.is_repeatable = is_repeatable
        self.body = body


#: Faults before a byte was sent on a connection: the next endpoint may be tried.
UNSENT: Final = frozenset(
    {FaultKind.CONNECT_REFUSED, FaultKind.CONNECT_TIMEOUT, FaultKind.DNS_ERROR, FaultKind.TLS_ERROR}
)


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose connections a client makes, as faults name it to the client: never by an address."""

    #: For example `upstream 'asr'`.
    name: str
    #: The config keys of its endpoints and of its timeouts.
    endpoints_key: str
    timeouts_key: str

    @property
    def subject(self) -> str:
        """The name at the beginning of a sentence."""
        return self.name[0].upper() + self.name[1:]


class UpstreamClient:
    """Sends requests over kept connections: aiohttp's pool and parser, without its session.

    A ClientSession builds URL, headers, cookies and redirects for every request; here all of that is decided elsewhere,
    and it is a sixth of what a small request costs.
    """

    def __init__(
        self,
        timeouts: UpstreamTimeouts,
        timers: Timers,
        whose: Whose,
        resolver: Resolver,
        guard: AddressGuard | None = None,
        *,
        stats: UpstreamStats | None = None,
    ) -> None:
        """`stats` is where retries, connections and the times of responses are counted, if anywhere."""
        self._whose = whose
        self._stats = stats or UpstreamStats("")
        self._connector = LiveConnector(
            timers.turns,
            self._stats.connect_seconds.observe,
            limit=0,  # CapacityLimiter counts, with a queue, a metric and a 503
            use_dns_cache=False,  # the resolver remembers
            socket_factory=guard.make_socket if guard else open_socket,
            resolver=guard.make_resolver(resolver) if guard else resolver,
        )
        self._connect_seconds = None if math.isinf(timeouts.connect) else timeouts.connect
        self._timeouts = timeouts
        self._deadlines = None if math.isinf(timeouts.response) else timers.of(timeouts.response)
        #: One per endpoint of the config.
        self._pool_requests: dict[Endpoint, PoolRequest] = {}

    async def close(self) -> None:
        """Close every kept connection."""
        await self._connector.close()

    def kept(self, endpoint: Endpoint) -> KeptConnections:
        """Return the kept connections to an endpoint."""
        return self._pool_request(endpoint).kept

    def receive(self, request: UpstreamRequest, method: str) -> UpstreamResponse | None:
        """Take the response that was parsed for a request that was sent; None, with nothing taken, if `send` has to.

        That is so before its head is here, for an interim one, and for a head whose framing is refused.
        """
        connection = request.connection
        if connection is None or (received := connection.received_head) is None:
            return None
        message, content = received
        if is_interim(message.code):
            return None
        response = UpstreamResponse(message, content, connection, request, method)
        try:
            check_response_framing(response.version, response.status, response.headers)
        except Fault:
            return None
        connection.take_head()
        return response

    async def send(
        self,
        endpoint: Endpoint,
        head: RequestHead,
        body: OutgoingBody | None = None,
        *,
        on_connected: Callable[[], None] | None = None,
        started: UpstreamRequest | None = None,
    ) -> UpstreamResponse:
        """Send a request and return the response as soon as its head is here, perhaps before the body is sent.

        If a kept connection ends without a byte of a response, a repeatable request is sent once more on a new one: the
        upstream has most likely closed it while the request was on its way (RFC 9112 section 9.3.1). Raises Fault.
        Cancelling closes the connection, so that the upstream sees no complete request. `started` is a request that was
        sent: its response is awaited.
        """
        try:
            return await self._send(endpoint, head, body, on_connected, started=started)
        except Unanswered as fault:
            if not fault.was_kept or not fault.is_repeatable:
                raise
            held = fault.body
        self._stats.retries[_STALE_CONNECTION] += 1
        try:
            return await self._send(endpoint, head, held, on_connected, must_be_new=True)
        except Fault as fault:
            if fault.kind not in UNSENT:
                raise
            raise Unreplaced(fault, is_repeatable=True, body=held) from fault

    async def _send(
        self,
        endpoint: Endpoint,
        head: RequestHead,
        body: OutgoingBody | None,
        on_connected: Callable[[], None] | None,
        *,
        started: UpstreamRequest | None = None,
        must_be_new: bool = False,
    ) -> UpstreamResponse:
        request = started or UpstreamRequest(head, endpoint, body, on_connected)
        connection = request.connection
        is_replacing = False
        try:
            address = self._pool_requests.get(endpoint) or self._pool_request(endpoint)
            if connection is None:
                connection = await self._connector.take(address, self._connect_seconds, must_be_new=must_be_new)
            try:
                try:
                    response = await self._exchange(connection, head.method, request)
                except aiohttp.ClientConnectionError:
                    if not request.is_stranded:
                        raise
                    connection.drop()
                    self._stats.retries[_STALE_CONNECTION] += 1
                    is_replacing = True
                    connection = await self._connector.take(address, self._connect_seconds, must_be_new=True)
                    is_replacing = False
                    response = await self._exchange(connection, head.method, request)
            except BaseException:
                # Also when cancelled: nothing else refers to the connection yet.
                request.close(is_whole=False)
                connection.drop()
                await request.stop()
                raise
        except (aiohttp.ClientError, OSError, HttpProcessingError) as exc:
            exhaustion = exhaustion_fault(exc) if isinstance(exc, OSError) else None
            fault = request.fault or exhaustion or self._blame_upstream(exc, request, connection)
            # The body is under way, so it goes to no other endpoint.
            raise (Unreplaced(fault, is_repeatable=False) if is_replacing else fault) from exc
        try:
            check_response_framing(response.version, response.status, response.headers)
        except Fault:
            await response.close()
            raise
        return response

    def _pool_request(self, endpoint: Endpoint) -> PoolRequest:
        request = self._pool_requests.get(endpoint)
        if request is None:
            url = URL.build(scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, path="/")
            request = self._pool_requests[endpoint] = PoolRequest(url, kept_seconds=_KEEPALIVE_SECONDS)
        return request

    async def _exchange(self, connection: ClientConnection, method: str, request: UpstreamRequest) -> UpstreamResponse:
        """Start the request, unless that was done, and return its response."""
        if request.sent_at is not None:
            return await self._await_response(connection, request, method, request.sent_at)
        connection.expect_response(may_have_body=method != "HEAD")
        deadlines = self._deadlines
        if deadlines is not None:
            request.deadlines = deadlines
        try:
            request.start(connection)
            return await self._read_response(connection, request, method)
        finally:
            if deadlines is not None:
                request.deadlines = None
                deadlines.stop(request)

    async def _await_response(
        self, connection: ClientConnection, request: UpstreamRequest, method: str, sent_at: float
    ) -> UpstreamResponse:
        """Return the response to a request that was started before: its time runs since then."""
        if self._deadlines is None:
            return await self._read_response(connection, request, method)
        # With a timer of its own: those of a TimerQueue fire in the order in which they were started.
        deadline = asyncio.get_running_loop().call_at(sent_at + self._timeouts.response, request.time_out)
        try:
            return await self._read_response(connection, request, method)
        finally:
            deadline.cancel()

    async def _read_response(
        self, connection: ClientConnection, request: UpstreamRequest, method: str
    ) -> UpstreamResponse:
        while True:
            message, content = await connection.read()
            if not is_interim(message.code):
                self._observe_response(request)
                return UpstreamResponse(message, content, connection, request, method)
            check_response_framing(message.version, message.code, ReceivedHeaders(message.raw_headers))

    def _observe_response(self, request: UpstreamRequest) -> None:
        if request.sent_at is not None:
            self._stats.response_seconds.observe(time.monotonic() - request.sent_at)

    def _blame_upstream(self, exc: Exception, request: UpstreamRequest, connection: ClientConnection | None) -> Fault:
        if isinstance(exc, aiohttp.ClientConnectorError):
            return self._explain_unconnected(exc)
        if isinstance(exc, aiohttp.SocketTimeoutError):
            return Fault(
                FaultKind.RESPONSE_TIMEOUT,
                f"No response within {self._timeouts.response:g} s of the end of the request: see why the upstream is "
                f"slow, or raise {self._whose.timeouts_key}.response ({self._timeouts.response:g} s).",
            )
        if isinstance(exc, TimeoutError):
            return Fault(
                FaultKind.CONNECT_TIMEOUT,
                f"{self._whose.subject} did not accept the connection within {self._timeouts.connect:g} s: see whether "
                f"it is up, or raise {self._whose.timeouts_key}.connect ({self._timeouts.connect:g} s).",
            )
        for types, kind, detail in _FAULTS:
            if isinstance(exc, types):
                if kind is FaultKind.UPSTREAM_CLOSED and connection is not None:
                    return _explain_close(request, connection, detail)
                return Fault(kind, detail)
        return Fault(FaultKind.BAD_RESPONSE, "The upstream's response could not be understood: see its log.")

    def _explain_unconnected(self, exc: aiohttp.ClientConnectorError) -> Fault:
        """Return the fault of a connection that could not be made. Only its reason, for the log, has the address."""
        whose = self._whose
        if isinstance(exc, aiohttp.ClientSSLError):
            detail = (
                f"TLS to {whose.name} failed: check its certificate, and whether {whose.endpoints_key} should be https."
            )
            return Fault(FaultKind.TLS_ERROR, detail, reason=str(exc))
        error = exc.os_error
        if isinstance(error, AddressForbiddenError):
            return address_forbidden()
        reason = f"{exc.host}:{exc.port}: {error}"
        if isinstance(exc, aiohttp.ClientConnectorDNSError):
            if (fault := descriptor_fault()) is not None:
                return fault
            text = error.strerror or "no address"
            detail = f"The name of {whose.name} cannot be resolved ({text}): check {whose.endpoints_key}."
            return Fault(FaultKind.DNS_ERROR, detail, reason=reason)
        text = os.strerror(error.errno) if error.errno else "not reachable"
        detail = f"{whose.subject} cannot be connected ({text}): see whether it is up, and check {whose.endpoints_key}."
        return Fault(FaultKind.CONNECT_REFUSED, detail, reason=reason)


#: First match wins: subclasses come before their base classes.
_FAULTS: Final[tuple[tuple[Any, FaultKind, str], ...]] = (
    (
        (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch),
        FaultKind.TLS_ERROR,
        "TLS to the upstream failed: check its certificate and whether the endpoint should be https.",
    ),
    (
        HttpProcessingError,
        FaultKind.BAD_RESPONSE,
        "The upstream's response is not well-formed HTTP/1.1 (RFC 9112): see its log.",
    ),
    (
        (aiohttp.ClientConnectionError, OSError),
        FaultKind.UPSTREAM_CLOSED,
        "The upstream closed the connection without a response: see its log.",
    ),
)


def _explain_close(request: UpstreamRequest, connection: ClientConnection, detail: str) -> Fault:
    if connection.has_received:
        return Fault(FaultKind.UPSTREAM_CLOSED, detail)
    return Unanswered(detail, request, was_kept=connection.is_kept)
