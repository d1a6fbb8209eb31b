"""forward: the client's request to an upstream, the upstream's answer to the client, both as they flow.

The upload runs in aiohttp's writer task while the answer is awaited and relayed here: an upstream may answer before
it has read everything, and is relayed at once. Whatever breaks, each side learns that what it got is not whole.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

from gateway.actions.body_shape import framing_fields, join_query, without_content_fields
from gateway.actions.mirror import Mirror, Tee
from gateway.actions.policies import AnswerCourses, answer_courses, upload_course, upstream_pace
from gateway.actions.reencode import RemadeBody
from gateway.actions.upload import check_upload, form_boundary, form_digest, raw_head
from gateway.config import FormFields, Route
from gateway.config.model import Forward
from gateway.config.values import Endpoint
from gateway.downstream import Exchange, RequestBody
from gateway.errors import Outcome
from gateway.filters import FileHead, FilesAlong, FilterKind, TransformKind
from gateway.http.headers import Field, encode_head, request_fields, response_fields
from gateway.http.routing import Found
from gateway.multipart import Part, PartInspector, PartKind
from gateway.observe.stats import Side
from gateway.transfer import Carrier
from gateway.transfer.transfer import Filter, Transfer, nothing_pending
from gateway.upstream import ReceivedAnswer, Sending, Service, UpstreamSink


class ForwardAction:
    """The action of one route."""

    def __init__(
        self,
        route: Route,
        config: Forward,
        service: Service,
        carrier: Carrier,
        *,
        filters: Sequence[FilterKind],
        mirror: Mirror | None,
    ) -> None:
        self._mirror = mirror
        self._all_kinds = kinds = list(filters)
        self._kinds = [kind for kind in kinds if not isinstance(kind, TransformKind)]
        # What makes a body go upstream in another form than it came: any, or only forms.
        self._has_transforms = len(self._kinds) != len(kinds)
        self._must_remake_forms = config.body == "raw" or config.multipart == "strict" or config.fields != FormFields()
        self._carrier = carrier
        self._route = route
        self._config = config
        self._service = service
        self._upload_course = upload_course(route, Side.UPSTREAM_WRITE, upstream_pace(route, service.idle_seconds))
        self._answer_courses = answer_courses(route, service.idle_seconds)

    async def close(self) -> None:
        """Cut what is still being mirrored."""
        if self._mirror is not None:
            await self._mirror.close()

    async def __call__(self, exchange: Exchange, found: Found) -> None:
        """Run one exchange. Raises Fault; cancelling cuts both sides."""
        exchange.named.upstream = self._service.name
        body = exchange.body
        if body is None:
            exchange.check_expectation()
            async with self._service.gate:
                self._tee(exchange, found)
                await self._send(exchange, found, None, None, [])
            return
        boundary = form_boundary(exchange) if self._config.multipart != "opaque" else None
        if self._must_remake(boundary):
            await self._send_remade(exchange, found, body, boundary)
        else:
            await self._send_as_it_is(exchange, found, boundary)

    async def _send_as_it_is(self, exchange: Exchange, found: Found, boundary: bytes | None) -> None:
        filters, along = self._make_filters(exchange, boundary)
        async with self._service.gate:
            if (tee := self._tee(exchange, found)) is not None:
                # Behind the others: what they refuse is not mirrored either.
                filters.append(tee)
            whole = form_digest(exchange, self._kinds) if boundary is not None else []
            awaited = [*whole, along] if along is not None else whole
            with exchange.begin_upload(self._upload_course, [*filters, *whole], awaited) as upload:
                if tee is not None and along is not None:
                    tee.judge = upload
                first = await _read_first(exchange, upload, along) if along is not None else []
                await self._send(exchange, found, upload, along, first)

    async def _send(
        self,
        exchange: Exchange,
        found: Found,
        upload: Transfer | None,
        along: FilesAlong | None,
        first: list[bytes],
    ) -> None:
        """Send the request, with `first` before the rest of its upload, and relay its answer."""
        answer = await self._service.send(
            exchange.method,
            lambda endpoint: self._make_request(exchange, found, endpoint, upload, first),
            exchange.note_endpoint,
        )
        async with answer:
            await relay(exchange, answer, self._answer_courses, upload, self._carrier, along=along)

    def _tee(self, exchange: Exchange, found: Found) -> Tee | None:
        return self._mirror.tee(exchange, found) if self._mirror is not None else None

    def _must_remake(self, boundary: bytes | None) -> bool:
        """Say whether a body cannot go upstream byte for byte."""
        if self._has_transforms:
            return True
        return self._config.body == "multipart" if boundary is None else self._must_remake_forms

    async def _send_remade(self, exchange: Exchange, found: Found, body: RequestBody, boundary: bytes | None) -> None:
        limit = check_upload(exchange, self._route)
        async with self._service.gate:
            tee = self._tee(exchange, found)
            whole = form_digest(exchange, self._all_kinds) if boundary is not None else []
            filters: list[Filter] = [limit, *whole] if tee is None else [limit, *whole, tee]
            with exchange.begin_upload(self._upload_course, filters, whole) as upload:
                if tee is not None:
                    tee.judge = upload
                pulled = self._carrier.pulled(upload, body)
                async with RemadeBody(exchange, found, self._config, self._all_kinds, upload, body=pulled) as remade:
                    # Its beginning decides the head, so it is asked for before an endpoint is connected.
                    exchange.invite()
                    remade.choose(boundary, needs_length=self._service.framing == "length_required")
                    await remade.prepare()
                    answer = await self._service.send(
                        exchange.method,
                        lambda endpoint: self._make_remade_request(exchange, found, endpoint, remade),
                        exchange.note_endpoint,
                    )
                    async with answer:
                        await relay(exchange, answer, self._answer_courses, upload, self._carrier, along=remade)

    def _make_filters(self, exchange: Exchange, boundary: bytes | None) -> tuple[list[Filter], FilesAlong | None]:
        """Return what looks at the body, having refused what its head already gives away."""
        limit = check_upload(exchange, self._route)
        # A declared length was checked: what follows it cannot be more.
        filters: list[Filter] = [limit] if exchange.length is None else []
        along: FilesAlong | None = None
        if self._kinds:

            def note_file(file: FileHead, size: int, facts: dict[str, str | int]) -> None:
                exchange.note_part(file.number, PartKind.FILE, size, Outcome.COMPLETE, facts)

            along = FilesAlong(self._kinds, exchange.client, note_file)
        if boundary is not None:

            def note(part: Part) -> None:
                if along is None or part.kind is PartKind.FIELD:
                    exchange.note_part(part.number, part.kind, part.size, Outcome.COMPLETE)

            filters.append(PartInspector(boundary, self._route.limits, self._route.name, note, along))
        elif along is not None:
            along.take_whole_body(raw_head(exchange, ""))
        return ([*filters, along] if along is not None else filters), along

    def _make_request(
        self, exchange: Exchange, found: Found, endpoint: Endpoint, upload: Transfer | None, first: list[bytes]
    ) -> Sending:
        fields: list[Field] = [(b"Host", self._host(exchange, endpoint))]
        fields += request_fields(exchange.fields, exchange.origin, exchange.trace)
        is_chunked = False
        if exchange.length != 0:
            framing = framing_fields(self._service.framing, exchange.length)
            is_chunked = framing[0][0] != b"Content-Length"
            fields += framing
        elif exchange.method in ("POST", "PUT", "PATCH"):
            # > A user agent SHOULD send Content-Length in a request when the method defines a meaning for enclosed
            # > content and it is not sending Transfer-Encoding (RFC 9110 section 8.6).
            fields.append((b"Content-Length", b"0"))
        target = f"{found.path}{exchange.target.query}".encode("latin-1")
        line = exchange.method.encode() + b" " + target + b" HTTP/1.1"
        carry_body: Callable[[UpstreamSink], Awaitable[None]] | None = None
        if upload is not None and exchange.body is not None:
            carry_body = functools.partial(_carry, self._carrier, upload, exchange.body, first)
        return Sending(encode_head(line, fields), carry_body, is_chunked=is_chunked, on_connected=exchange.invite)

    def _make_remade_request(self, exchange: Exchange, found: Found, endpoint: Endpoint, remade: RemadeBody) -> Sending:
        shaped = remade.shaped
        fields: list[Field] = [(b"Host", self._host(exchange, endpoint))]
        fields += request_fields(without_content_fields(exchange.fields), exchange.origin, exchange.trace)
        fields += shaped.fields
        framing = framing_fields(self._service.framing, shaped.length)
        target = join_query(found.path, exchange.target.query, shaped.query)
        head = encode_head(f"{exchange.method} {target} HTTP/1.1".encode("latin-1"), [*fields, *framing])
        is_chunked = framing[0][0] != b"Content-Length"
        return Sending(head, remade.carry, is_chunked=is_chunked, on_connected=exchange.invite)

    def _host(self, exchange: Exchange, endpoint: Endpoint) -> bytes:
        if self._config.host == "preserve" and exchange.target.authority:
            return exchange.target.authority
        return endpoint.authority.encode()


async def _read_first(exchange: Exchange, upload: Transfer, along: FilesAlong) -> list[bytes]:
    """Read and hold what filters must see of a body before an upstream hears of the request. Raises Fault."""
    first: list[bytes] = []
    if along.has_verdict:
        return first
    exchange.invite()
    with upload.watched(nothing_pending):
        while not along.has_verdict and (chunk := await upload.pull()):
            first.append(chunk)
    return first


async def _carry(carrier: Carrier, upload: Transfer, body: RequestBody, first: list[bytes], sink: UpstreamSink) -> None:
    """Send what was held, then the rest."""
    while first:
        await sink.write(first.pop(0))
    await carrier.carry(upload, body, sink)


async def relay(
    exchange: Exchange,
    answer: ReceivedAnswer,
    courses: AnswerCourses,
    upload: Transfer | None,
    carrier: Carrier,
    *,
    along: FilesAlong | RemadeBody | None = None,
) -> None:
    """Pipe an upstream's answer to the client. Raises Fault; then what the client got must be cut.

    An upload still running when the answer is whole has been answered early.
    """
    course = courses.endless if answer.body_length is None else courses.sized
    with exchange.begin_download(course, answer, answer.body_length) as download:
        fields = response_fields(answer.fields, exchange.trace)
        if along is not None:
            fields += along.answer_fields()
        sink = await exchange.begin_answer(
            answer.status, answer.reason, fields, answer.length, is_at_hand=answer.is_at_hand
        )

        async def finish() -> None:
            if upload is not None and upload.fault is not None:
                # The upstream gave up because our side of its request broke: its answer is not to be believed.
                raise upload.fault
            await sink.end()

        await carrier.carry(download, answer, sink, finish)
    if upload is not None and not upload.is_whole:
        upload.end(Outcome.ANSWERED_EARLY)
