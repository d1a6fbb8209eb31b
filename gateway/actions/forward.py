"""forward: the client's request to an upstream, the upstream's answer to the client, both as they flow.

The upload runs in aiohttp's writer task while the answer is awaited and relayed here: an upstream may answer before
it has read everything, and is relayed at once. Whatever breaks, each side learns that what it got is not whole.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from gateway.actions.body_shape import framing_headers, join_query, without_content_headers
from gateway.actions.mirror import Mirror, Tee
from gateway.actions.policies import ResponsePolicies, response_policies, upload_policy, upstream_limits
from gateway.actions.reencode import ReencodedBody
from gateway.actions.upload import check_upload, form_boundary, form_digest, raw_head
from gateway.config import FormFields, Route
from gateway.config.model import Forward
from gateway.config.values import Endpoint
from gateway.downstream import Exchange, RequestBody
from gateway.errors import Outcome
from gateway.filters import FileHead, FilterFactory, FormObserver, TransformFactory
from gateway.http.headers import Header, encode_head, request_headers, response_headers
from gateway.http.routing import RouteMatch
from gateway.multipart import Part, PartInspector, PartKind
from gateway.observe.stats import Leg
from gateway.transfer import Filter, Lanes, Transfer
from gateway.upstream import UpstreamPool, UpstreamRequest, UpstreamResponse, UpstreamSink


class ForwardAction:
    """The action of one route."""

    def __init__(
        self,
        route: Route,
        config: Forward,
        upstream: UpstreamPool,
        lanes: Lanes,
        *,
        filters: Sequence[FilterFactory],
        mirror: Mirror | None,
    ) -> None:
        self._mirror = mirror
        self._all_factories = factories = list(filters)
        self._factories = [factory for factory in factories if not isinstance(factory, TransformFactory)]
        # What makes a body go upstream in another form than it came: any, or only forms.
        self._has_transforms = len(self._factories) != len(factories)
        self._must_reencode_forms = (
            config.body == "raw" or config.multipart == "strict" or config.form_fields != FormFields()
        )
        self._lanes = lanes
        self._route = route
        self._config = config
        self._upstream = upstream
        self._upload_policy = upload_policy(route, Leg.UPSTREAM_WRITE, upstream_limits(route, upstream.idle_seconds))
        self._response_policies = response_policies(route, upstream.idle_seconds)

    async def close(self) -> None:
        """Cut what is still being mirrored."""
        if self._mirror is not None:
            await self._mirror.close()

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault; cancelling cuts both sides."""
        exchange.named.upstream = self._upstream.name
        body = exchange.body
        if body is None:
            exchange.check_expectation()
            async with self._upstream.capacity:
                self._tee(exchange, matched)
                await self._send(exchange, matched, None, None, [])
            return
        boundary = form_boundary(exchange) if self._config.multipart != "opaque" else None
        if self._must_reencode(boundary):
            await self._send_reencoded(exchange, matched, body, boundary)
        else:
            await self._send_as_it_is(exchange, matched, boundary)

    async def _send_as_it_is(self, exchange: Exchange, matched: RouteMatch, boundary: bytes | None) -> None:
        filters, form_observer = self._make_filters(exchange, boundary)
        async with self._upstream.capacity:
            if (tee := self._tee(exchange, matched)) is not None:
                # Behind the others: what they refuse is not mirrored either.
                filters.append(tee)
            whole = form_digest(exchange, self._factories) if boundary is not None else []
            awaited = [*whole, form_observer] if form_observer is not None else whole
            with exchange.begin_upload(self._upload_policy, [*filters, *whole], awaited) as upload:
                if tee is not None and form_observer is not None:
                    tee.judge = upload
                first = await _read_first(exchange, upload, form_observer) if form_observer is not None else []
                await self._send(exchange, matched, upload, form_observer, first)

    async def _send(
        self,
        exchange: Exchange,
        matched: RouteMatch,
        upload: Transfer | None,
        form_observer: FormObserver | None,
        first: list[bytes],
    ) -> None:
        """Send the request, with `first` before the rest of its upload, and relay its answer."""
        response = await self._upstream.send(
            exchange.method,
            lambda endpoint: self._make_request(exchange, matched, endpoint, upload, first),
            exchange.record_endpoint,
        )
        async with response:
            await relay(exchange, response, self._response_policies, upload, self._lanes, form_observer=form_observer)

    def _tee(self, exchange: Exchange, matched: RouteMatch) -> Tee | None:
        return self._mirror.tee(exchange, matched) if self._mirror is not None else None

    def _must_reencode(self, boundary: bytes | None) -> bool:
        """Say whether a body cannot go upstream byte for byte."""
        if self._has_transforms:
            return True
        return self._config.body == "multipart" if boundary is None else self._must_reencode_forms

    async def _send_reencoded(
        self, exchange: Exchange, matched: RouteMatch, body: RequestBody, boundary: bytes | None
    ) -> None:
        limit = check_upload(exchange, self._route)
        async with self._upstream.capacity:
            tee = self._tee(exchange, matched)
            whole = form_digest(exchange, self._all_factories) if boundary is not None else []
            filters: list[Filter] = [limit, *whole] if tee is None else [limit, *whole, tee]
            with exchange.begin_upload(self._upload_policy, filters, whole) as upload:
                if tee is not None:
                    tee.judge = upload
                pulled = self._lanes.read_body(upload, body)
                async with ReencodedBody(
                    exchange, matched, self._config, self._all_factories, upload, body=pulled
                ) as reencoded:
                    # Its beginning decides the head, so it is asked for before an endpoint is connected.
                    exchange.send_continue()
                    reencoded.choose(boundary, needs_length=self._upstream.framing == "length_required")
                    await reencoded.prepare()
                    response = await self._upstream.send(
                        exchange.method,
                        lambda endpoint: self._make_reencoded_request(exchange, matched, endpoint, reencoded),
                        exchange.record_endpoint,
                    )
                    async with response:
                        await relay(
                            exchange, response, self._response_policies, upload, self._lanes, form_observer=reencoded
                        )

    def _make_filters(self, exchange: Exchange, boundary: bytes | None) -> tuple[list[Filter], FormObserver | None]:
        """Return what looks at the body, having refused what its head already gives away."""
        limit = check_upload(exchange, self._route)
        # A declared length was checked: what follows it cannot be more.
        filters: list[Filter] = [limit] if exchange.length is None else []
        form_observer: FormObserver | None = None
        if self._factories:

            def note_file(file: FileHead, size: int, facts: dict[str, str | int]) -> None:
                exchange.record_part(file.number, PartKind.FILE, size, Outcome.COMPLETE, facts)

            form_observer = FormObserver(self._factories, exchange.client, note_file)
        if boundary is not None:

            def note(part: Part) -> None:
                if form_observer is None or part.kind is PartKind.FIELD:
                    exchange.record_part(part.number, part.kind, part.size, Outcome.COMPLETE)

            filters.append(PartInspector(boundary, self._route.limits, self._route.name, note, form_observer))
        elif form_observer is not None:
            form_observer.take_whole_body(raw_head(exchange, ""))
        return ([*filters, form_observer] if form_observer is not None else filters), form_observer

    def _make_request(
        self, exchange: Exchange, matched: RouteMatch, endpoint: Endpoint, upload: Transfer | None, first: list[bytes]
    ) -> UpstreamRequest:
        headers: list[Header] = [(b"Host", self._host(exchange, endpoint))]
        headers += request_headers(exchange.headers, exchange.client_info, exchange.trace)
        is_chunked = False
        if exchange.length != 0:
            framing = framing_headers(self._upstream.framing, exchange.length)
            is_chunked = framing[0][0] != b"Content-Length"
            headers += framing
        elif exchange.method in ("POST", "PUT", "PATCH"):
            # > A user agent SHOULD send Content-Length in a request when the method defines a meaning for enclosed
            # > content and it is not sending Transfer-Encoding (RFC 9110 section 8.6).
            headers.append((b"Content-Length", b"0"))
        target = f"{matched.path}{exchange.target.query}".encode("latin-1")
        line = exchange.method.encode() + b" " + target + b" HTTP/1.1"
        carry_body: Callable[[UpstreamSink], Awaitable[None]] | None = None
        if upload is not None and exchange.body is not None:
            carry_body = functools.partial(_carry, self._lanes, upload, exchange.body, first)
        return UpstreamRequest(
            encode_head(line, headers), carry_body, is_chunked=is_chunked, on_connected=exchange.send_continue
        )

    def _make_reencoded_request(
        self, exchange: Exchange, matched: RouteMatch, endpoint: Endpoint, reencoded: ReencodedBody
    ) -> UpstreamRequest:
        shape = reencoded.shape
        headers: list[Header] = [(b"Host", self._host(exchange, endpoint))]
        headers += request_headers(without_content_headers(exchange.headers), exchange.client_info, exchange.trace)
        headers += shape.headers
        framing = framing_headers(self._upstream.framing, shape.length)
        target = join_query(matched.path, exchange.target.query, shape.query)
        head = encode_head(f"{exchange.method} {target} HTTP/1.1".encode("latin-1"), [*headers, *framing])
        is_chunked = framing[0][0] != b"Content-Length"
        return UpstreamRequest(head, reencoded.carry, is_chunked=is_chunked, on_connected=exchange.send_continue)

    def _host(self, exchange: Exchange, endpoint: Endpoint) -> bytes:
        if self._config.host == "preserve" and exchange.target.authority:
            return exchange.target.authority
        return endpoint.authority.encode()


async def _read_first(exchange: Exchange, upload: Transfer, form_observer: FormObserver) -> list[bytes]:
    """Read and hold what filters must see of a body before an upstream hears of the request. Raises Fault."""
    first: list[bytes] = []
    if form_observer.has_enough:
        return first
    exchange.send_continue()
    with upload.watched():
        while not form_observer.has_enough and (chunk := await upload.pull_source()):
            first.append(chunk)
    return first


async def _carry(lanes: Lanes, upload: Transfer, body: RequestBody, first: list[bytes], sink: UpstreamSink) -> None:
    """Send what was held, then the rest."""
    while first:
        await sink.write(first.pop(0))
    await lanes.pump(upload, body, sink)


async def relay(
    exchange: Exchange,
    response: UpstreamResponse,
    courses: ResponsePolicies,
    upload: Transfer | None,
    lanes: Lanes,
    *,
    form_observer: FormObserver | ReencodedBody | None = None,
) -> None:
    """Pipe an upstream's answer to the client. Raises Fault; then what the client got must be cut.

    An upload still running when the answer is whole has been answered early.
    """
    policy = courses.endless if response.body_length is None else courses.sized
    with exchange.begin_download(policy, response, response.body_length) as download:
        headers = response_headers(response.headers, exchange.trace)
        if form_observer is not None:
            headers += form_observer.response_headers()
        sink = await exchange.begin_response(
            response.status, response.reason, headers, response.length, is_ready=response.is_ready
        )

        async def finish() -> None:
            if upload is not None and upload.fault is not None:
                # The upstream gave up because our side of its request broke: its answer is not to be believed.
                raise upload.fault
            await sink.end()

        await lanes.pump(download, response, sink, finish)
    if upload is not None and not upload.is_whole:
        upload.end(Outcome.EARLY_RESPONSE)
