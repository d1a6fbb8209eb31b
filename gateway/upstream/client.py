"""One request sent, and its answer: where aiohttp's exceptions become faults, and nobody is blamed for another.

aiohttp reports a failure of our own body as the upstream's (an OSError of the source comes out as ClientOSError), so
the sending side is asked first.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL

from gateway.aiohttp_seam import (
    LiveConnector,
    PausableStream,
    PoolRequest,
    detach_parser,
    has_buffered,
    is_reading_paused,
)
from gateway.config.model import UpstreamTimeouts
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.transfer import RawSocket, SizedRawBody, Timers
from gateway.upstream.connection import UpstreamRequest
from gateway.upstream.guard import AddressGuard

#: Below the shortest idle timeout of servers seen behind gateways (uvicorn and Node: 5 s).
_KEEPALIVE_SECONDS: Final = 4.0
_MAX_HEADERS: Final = 200
_MAX_LINE_BYTES: Final = 16384
_BODILESS: Final = frozenset({204, 304})


class UpstreamResponse:
    """An upstream's answer: its head, and its body as a source. `close` it."""

    def __init__(
        self,
        message: RawResponseMessage,
        content: StreamReader,
        protocol: ResponseHandler,
        sending: UpstreamRequest,
        method: str,
    ) -> None:
        self._content = content
        self._protocol = protocol
        #: Set while the transport receives nothing.
        self._paused: PausableStream | None = None
        self._raw_body: SizedRawBody | None = None
        self._sending = sending
        self.status = message.code
        self.reason = (message.reason or "").encode("utf-8", "surrogateescape")
        self.headers = ReceivedHeaders(message.raw_headers)
        declared = self.headers.first(b"content-length")
        #: Content-Length as declared, also where no body follows (HEAD, 304); None without one.
        self.length = int(declared) if declared is not None else None
        is_bodiless = method == "HEAD" or self.status in _BODILESS
        #: Bytes to be read; None until the body's end.
        self.body_length = 0 if is_bodiless else self.length
        #: Called once it was closed.
        self.on_closed: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        """Hold it until the block is left."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault, the sending side's own first."""
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError, aiohttp.http.HttpProcessingError) as exc:
            raise self._lost() from exc

    @property
    def is_ready(self) -> bool:
        """Whether some of the body has come: then the next read returns it without waiting."""
        # Where there is none, aiohttp's stream is a stand-in without a buffer.
        return self.body_length != 0 and has_buffered(self._content)

    def pause(self) -> bool:
        """Stop receiving through the transport; return False if that cannot be done. Lifecycle: see PausableStream."""
        if self.body_length is None:
            return False
        stream = PausableStream(self._protocol, self._content)
        self._paused = stream if stream.pause() else None
        return self._paused is not None

    def fetch_buffered(self) -> bool:
        """Let the parser hand out what came in before the pause; return whether a read returns without waiting."""
        return self._paused is not None and self._paused.fetch_buffered()

    def detach(self, length: int | None) -> SizedRawBody | None:
        """Return the rest of the body, `length` bytes, to be read below the transport; None if none is left."""
        if not length:
            return None
        transport = self._paused.detach() if self._paused is not None else None
        if transport is None:
            raise self._lost()
        self._raw_body = SizedRawBody(RawSocket(transport), length, self._lost)
        return self._raw_body

    def resume(self, *, is_whole: bool) -> None:
        """Receive through the transport again; `is_whole` if the rest was read to its end below it.

        Only then can the connection be kept.
        """
        if self._raw_body is not None:
            self._raw_body.socket.close()
        if is_whole:
            detach_parser(self._protocol, self._content)
        if self._paused is not None:
            self._paused.resume()
            self._paused = None

    def _lost(self) -> Fault:
        return self._sending.fault or Fault(
            FaultKind.RESPONSE_INCOMPLETE, "The upstream's connection was lost within its answer: see its log."
        )

    async def close(self) -> None:
        """Let go: the connection is kept if both bodies ended whole, broken off otherwise."""
        # A connection whose reading is paused, since the body was not read, would never be resumed.
        self._sending.close(is_whole=self._content.is_eof() and not is_reading_paused(self._protocol))
        if self.on_closed is not None:
            self.on_closed()
            self.on_closed = None
        await self._sending.stop()


class Client:
    """Sends requests over kept connections: aiohttp's pool and parser, without the session on top.

    A ClientSession makes URL, headers, cookies and redirects of every request anew; all of that is decided elsewhere
    here, and is a sixth of what a small request costs.
    """

    def __init__(self, timeouts: UpstreamTimeouts, timers: Timers, guard: AddressGuard | None = None) -> None:
        self._connector = LiveConnector(
            limit=0,  # the gate counts, with a bound, a metric and a 503
            keepalive_timeout=_KEEPALIVE_SECONDS,
            ttl_dns_cache=10,
            **({"socket_factory": guard} if guard else {}),
        )
        connect = None if math.isinf(timeouts.connect) else timeouts.connect
        # ceil_threshold: aiohttp rounds longer timeouts up to whole seconds otherwise.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_read=None, ceil_threshold=math.inf)
        self._response_seconds = timeouts.response
        self._deadlines = None if math.isinf(timeouts.response) else timers.of(timeouts.response)
        #: As many as the config names.
        self._addresses: dict[Endpoint, PoolRequest] = {}

    async def close(self) -> None:
        """Close every kept connection."""
        await self._connector.close()

    async def send(self, endpoint: Endpoint, method: str, sending: UpstreamRequest) -> UpstreamResponse:
        """Send a request and return the answer as soon as its head is there, which may be before the body is sent.

        Raises Fault. Cancelling closes the connection, so that the upstream sees no whole request.
        """
        try:
            connection = await self._connector.connect(self._address(endpoint), [], self._timeout)
            try:
                response = await self._ask(connection, method, sending)
            except BaseException:
                # Also when cancelled: nobody else knows of the connection yet.
                sending.close(is_whole=False)
                connection.close()
                await sending.stop()
                raise
        except (aiohttp.ClientError, OSError, HttpProcessingError) as exc:
            raise sending.fault or self._blame_upstream(exc) from exc
        try:
            _check_response(response)
        except Fault:
            await response.close()
            raise
        return response

    def _address(self, endpoint: Endpoint) -> PoolRequest:
        address = self._addresses.get(endpoint)
        if address is None:
            url = URL.build(scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, path="/")
            address = self._addresses[endpoint] = PoolRequest(url)
        return address

    async def _ask(self, connection: Connection, method: str, sending: UpstreamRequest) -> UpstreamResponse:
        protocol = connection.protocol
        if protocol is None:
            raise aiohttp.ClientConnectionError("the connection was lost before the request was sent")
        protocol.set_response_params(
            skip_payload=method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
        )
        deadlines = self._deadlines
        if deadlines is not None:
            sending.on_sent = lambda: deadlines.start(sending, lambda: _give_up(protocol))
        try:
            sending.begin(connection)
            while True:
                message, content = await protocol.read()
                if not _is_interim(message.code):
                    return UpstreamResponse(message, content, protocol, sending, method)
        finally:
            sending.on_sent = None
            if deadlines is not None:
                deadlines.stop(sending)

    def _blame_upstream(self, exc: Exception) -> Fault:
        if isinstance(exc, aiohttp.SocketTimeoutError):
            return Fault(
                FaultKind.RESPONSE_TIMEOUT,
                f"No answer within {self._response_seconds:g} s of the end of the request: "
                "see why the upstream is slow, or raise its timeouts.response.",
            )
        for factories, kind, detail in _FAULTS:
            if isinstance(exc, factories):
                if isinstance(exc, aiohttp.ClientConnectorError) and exc.os_error.errno == errno.EACCES:
                    return Fault(
                        FaultKind.ADDRESS_FORBIDDEN, "The name resolves to an address that may not be reached."
                    )
                return Fault(kind, detail)
        return Fault(FaultKind.BAD_RESPONSE, "The upstream's answer could not be understood: see its log.")


#: First match wins: subclasses stand above their classes.
_FAULTS: Final[tuple[tuple[Any, FaultKind, str], ...]] = (
    (
        TimeoutError,
        FaultKind.CONNECT_TIMEOUT,
        "The upstream did not accept the connection in time: is it up, and timeouts.connect long enough?",
    ),
    (
        aiohttp.ClientConnectorDNSError,
        FaultKind.DNS_ERROR,
        "The upstream's name does not resolve: check its endpoints.",
    ),
    (
        (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch),
        FaultKind.TLS_ERROR,
        "TLS to the upstream failed: check its certificate and whether the endpoint should be https.",
    ),
    (
        aiohttp.ClientConnectorError,
        FaultKind.CONNECT_REFUSED,
        "The upstream refused the connection or is not reachable: is it up, and are its endpoints right?",
    ),
    (
        HttpProcessingError,
        FaultKind.BAD_RESPONSE,
        "The upstream's answer is not well-formed HTTP/1.1 (RFC 9112): see its log.",
    ),
    (
        (aiohttp.ClientConnectionError, OSError),
        FaultKind.UPSTREAM_CLOSED,
        "The upstream closed the connection without an answer: see its log.",
    ),
)


def _give_up(protocol: ResponseHandler) -> None:
    protocol.set_exception(aiohttp.SocketTimeoutError("no answer in time"))


def _is_interim(status: int) -> bool:
    """Whether the answer proper is still to come; 101 would be one of its own (RFC 9110 section 15.2)."""
    return 100 <= status < 200 and status != 101  # noqa: PLR2004 (statuses say more than names for them)


def _check_response(response: UpstreamResponse) -> None:
    """Refuse answers that would mean something else behind us. Raises Fault BAD_RESPONSE."""
    if response.status == 101:  # noqa: PLR2004 (Switching Protocols)
        raise Fault(FaultKind.BAD_RESPONSE, "The upstream switched protocols without being asked (RFC 9110 7.8).")
    codings = response.headers.all(b"transfer-encoding")
    if codings and (len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
        raise Fault(FaultKind.BAD_RESPONSE, "The upstream used a Transfer-Encoding other than chunked, once.")
