"""A request body sent upstream byte for byte, with filters that see it pass."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.actions.body_shape import BodyShape, check_held
from gateway.actions.upload import raw_head
from gateway.config import Route
from gateway.downstream import Exchange, ReceivedBody
from gateway.errors import Outcome
from gateway.filters import FileHead, FormObserver, ObserverFactory
from gateway.http.headers import Header
from gateway.multipart import EndedPart, PartInspector, PartKind
from gateway.transfer import Filter, Lanes, Transfer
from gateway.upstream import UpstreamSink


class VerbatimBody:
    """The client's body as it comes. `prepare` it before the request is sent."""

    #: The client's own headers describe it.
    shape: BodyShape | None = None

    def __init__(
        self,
        exchange: Exchange,
        transfer: Transfer,
        source: ReceivedBody,
        lanes: Lanes,
        observer: FormObserver | None,
    ) -> None:
        self._exchange = exchange
        self._transfer = transfer
        self._source = source
        self._lanes = lanes
        self._observer = observer
        #: Read before the request was sent; small chunks would take many times their bytes, one by one.
        self._first = bytearray()

    async def prepare(self, route: Route) -> None:
        """Read and hold what filters must see of the body before an upstream receives the request. Raises Fault.

        At most `max_held` bytes before the first file, and of the file what the filters ask for.
        """
        observer = self._observer
        if observer is None or observer.has_enough:
            return
        self._exchange.send_continue()
        with self._transfer.watched():
            while not observer.has_enough and (chunk := await self._transfer.pull_source()):
                self._first += chunk
                if not observer.has_enough:
                    check_held(route, len(self._first) - observer.size)

    async def send_to(self, sink: UpstreamSink) -> None:
        """Send what is held, then the rest. Raises Fault for the source, OSError for the sink."""
        if self._first:
            with self._transfer.watched(sink.acknowledged):
                first, self._first = bytes(self._first), bytearray()
                await sink.write(first)
        await self._lanes.pump(self._transfer, self._source, sink)

    def response_headers(self) -> Sequence[Header]:
        """Return the headers that filters add to the response."""
        return self._observer.response_headers() if self._observer is not None else ()


def inspect_body(
    exchange: Exchange, route: Route, boundary: bytes | None, observers: Sequence[ObserverFactory]
) -> tuple[list[Filter], FormObserver | None]:
    """Return the filters that see a body pass: the reader of its parts, and the observers of its files, if any."""
    observer: FormObserver | None = None
    if observers:

        def record_file(file: FileHead, size: int, facts: dict[str, str | int]) -> None:
            exchange.record_part(file.number, PartKind.FILE, size, Outcome.COMPLETE, facts)

        observer = FormObserver(observers, exchange.client.address, record_file)
    filters: list[Filter] = []
    if boundary is not None:

        def record(part: EndedPart) -> None:
            if observer is None or part.kind is PartKind.FIELD:
                exchange.record_part(part.number, part.kind, part.size, Outcome.COMPLETE)

        filters.append(PartInspector(boundary, route.limits, route.name, record, observer, length=exchange.length))
    elif observer is not None:
        observer.take_whole_body(raw_head(exchange, ""))
    return ([*filters, observer] if observer is not None else filters), observer
