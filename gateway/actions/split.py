"""split: every file of a form becomes an upstream request of its own as it arrives; one document of all responses.

Files go upstream in the order of the form, one at a time, since they arrive one at a time; while responses are awaited
the next file is already sent. Files are not held. Responses are, up to `max_response_bytes`, because the status of the
whole precedes them. A fault of the client ends the whole exchange and cuts the file under way; a fault of an upstream
is that file's entry in the document.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Final

from gateway.actions.body_shape import HeldFields
from gateway.actions.file_request import FileRequest, FileResult, ResponseBudget
from gateway.actions.policies import upload_policy, upstream_limits
from gateway.actions.split_document import describe
from gateway.actions.upload import check_upload, form_boundary, form_digest, no_file_fault, refuse_empty_form
from gateway.config import Route
from gateway.config.actions import Split
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FilterFactory, head_of
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, FormParts, Part, PartKind
from gateway.observe.stats import Leg
from gateway.transfer import BodyReader, Filter, Lanes, Transfer
from gateway.upstream import UpstreamPool

_MULTI_STATUS: Final = 207


class SplitAction:
    """The action of one route."""

    def __init__(
        self, route: Route, config: Split, upstream: UpstreamPool, lanes: Lanes, factories: Sequence[FilterFactory]
    ) -> None:
        self._lanes = lanes
        self.factories = factories
        self.route = route
        self.config = config
        self.upstream = upstream
        limits = upstream_limits(route, upstream.idle_seconds, f"{upstream.timeouts_key}.idle")
        self._policy = upload_policy(route, Leg.UPSTREAM_WRITE, limits)

    async def close(self) -> None:
        """Close nothing: every request ends with its exchange."""

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault; cancelling cuts every file under way."""
        exchange.upstream = self.upstream.name
        limit = check_upload(exchange, self.route)
        refuse_empty_form(exchange)
        boundary, body = form_boundary(exchange), exchange.body
        if boundary is None or body is None:
            raise Fault(
                FaultKind.NOT_A_FORM, "This route takes files in a form: send multipart/form-data (curl -F file=@NAME)."
            )
        async with contextlib.AsyncExitStack() as first_slot:
            # The slot of the first file is taken before the client is asked for its body.
            if self.upstream.capacity.is_full:
                exchange.waits.wait_on(Leg.QUEUE)
            await first_slot.enter_async_context(self.upstream.capacity)
            exchange.send_continue()
            digests = form_digest(exchange, self.factories)
            filters: list[Filter] = [limit, *digests]
            with exchange.begin_upload(self._policy, filters, digests) as transfer:
                splitter = _Splitter(self, exchange, matched, transfer)
                results = await splitter.run(self._lanes.read_body(transfer, body), boundary, first_slot)
        if not results:
            raise no_file_fault()
        status = 200 if all(result.has_succeeded for result in results) else _MULTI_STATUS
        document = describe(results, exchange.trace.request_id.decode("latin-1"))
        await exchange.reply(status, [(b"Content-Type", b"application/json")], document)


class _Splitter:
    """Splits one form: reads its parts in order, and sends each file by a task of its own."""

    def __init__(self, action: SplitAction, exchange: Exchange, matched: RouteMatch, transfer: Transfer) -> None:
        self._route = action.route
        self._config = action.config
        self._upstream = action.upstream
        self._factories = action.factories
        self._exchange = exchange
        self._matched = matched
        self._transfer = transfer
        self._held = HeldFields(action.route)
        self._results: list[FileResult] = []
        #: The files whose responses are awaited.
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_failure = asyncio.Event()
        self._has_sent = False
        self._budget = ResponseBudget(action.config.max_response_bytes, action.route.name)

    async def run(self, body: BodyReader, boundary: bytes, first_slot: contextlib.AsyncExitStack) -> list[FileResult]:
        """Send every file and wait for every response. Raises Fault for what the client did."""
        fault: Fault | None = None
        # Outside the group: the task of a file reads the body, so it is given back after all tasks have ended.
        with body:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._read_form(self._parts_of(body, boundary), group, first_slot)
                    # Perhaps not to its end, with `on_error: stop`; the responses may take long.
                    body.give_back()
                except Fault as exc:
                    # Raised after the group, which would wrap it; responses still awaited are of no use now.
                    fault = exc
                    for task in self._tasks:
                        task.cancel()
        for result in self._results:
            outcome = fault.outcome if fault is not None and not result.status else result.outcome
            self._exchange.record_part(result.file.number, PartKind.FILE, result.size, outcome, result.facts)
            self._exchange.record_file_end(result.outcome, result.blame)
            if fault is None and result.fault is not None:
                self._exchange.stats.faults[result.fault.kind.code] += 1
        if fault is not None:
            raise fault
        return self._results

    def _parts_of(self, body: BodyReader, boundary: bytes) -> AsyncIterator[Part]:
        limits, name = self._route.limits, self._route.name
        return FormParts(FormContent(boundary, limits, name, body), boundary, limits, name)

    async def _read_form(
        self, form: AsyncIterator[Part], group: asyncio.TaskGroup, first_slot: contextlib.AsyncExitStack
    ) -> None:
        while (part := await self._next_part(form)) is not None:
            if part.kind is PartKind.FIELD:
                continue
            # The files under way are charged meanwhile.
            await self._wait_for_task_slot()
            if self._is_stopped:
                self._results.append(FileResult(head_of(part, self._exchange.client.address), fault=_not_sent()))
            else:
                await self._send_file(part, group, first_slot)
            if self._is_stopped:
                self._transfer.end(Outcome.EARLY_RESPONSE)
                return

    async def _next_part(self, form: AsyncIterator[Part]) -> Part | None:
        """Return the next part; a field is read to its end and held."""
        with self._transfer.watched():
            part = await anext(form, None)
            if part is not None and part.kind is PartKind.FIELD:
                await self._held.read(part)
                self._exchange.record_part(part.number, PartKind.FIELD, part.size, Outcome.COMPLETE)
            return part

    async def _send_file(self, part: Part, group: asyncio.TaskGroup, first_slot: contextlib.AsyncExitStack) -> None:
        """Send one file; returns once its bytes are sent, or its request has ended."""
        request = FileRequest(
            self._config,
            self._exchange,
            self._matched,
            part,
            held=self._held.fields,
            factories=self._factories,
            transfer=self._transfer,
        )
        self._results.append(request.result)
        with self._transfer.watched():
            if not await self._prepare(request, part):
                return
        slot = self._upstream.capacity if self._has_sent else first_slot.pop_all()
        self._has_sent = True
        task = group.create_task(self._request(request, slot), name=f"file {part.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await request.connected.wait()
        with self._transfer.watched(request.acknowledged):
            await self._wait_released(request, part, task)

    async def _prepare(self, request: FileRequest, part: Part) -> bool:
        """Show the first bytes to the filters that need them; return whether the file may be sent."""
        try:
            await request.prepare()
        except Fault as fault:
            await request.end()
            if self._transfer.fault is not None:
                raise
            request.result.fault = fault
            self._has_failure.set()
            await part.skip()
            return False
        return True

    async def _request(self, request: FileRequest, slot: contextlib.AbstractAsyncContextManager[object]) -> None:
        """Send one file's request and take its response."""
        request.wait.wait_on(Leg.QUEUE if slot is self._upstream.capacity and slot.is_full else Leg.CONNECT)
        try:
            async with slot:
                response = await self._upstream.send(
                    request.make_head(self._upstream.framing),
                    request,
                    on_endpoint=request.record_endpoint,
                    on_connected=request.record_connected,
                )
                async with response:
                    await request.receive(response, self._budget, self._upstream)
        except Fault as fault:
            request.result.fault = fault
        finally:
            request.wait.stop()
            await request.end()
        if not request.result.has_succeeded:
            self._has_failure.set()

    async def _wait_released(self, request: FileRequest, part: Part, task: asyncio.Task[None]) -> None:
        """Wait until the file's bytes are sent or its request has ended; then skip the rest of the part."""
        stopping = self._has_failure.wait() if self._config.on_error == "stop" else asyncio.Event().wait()
        await _wait_first(request.released.wait(), stopping)
        if not request.released.is_set():
            # A file before it failed, with `on_error: stop`: this one is cut.
            task.cancel()
            await asyncio.wait([task])
            request.result.fault = _not_sent()
        if self._transfer.fault is not None:
            raise self._transfer.fault
        if not self._is_stopped:
            await part.skip()

    async def _wait_for_task_slot(self) -> None:
        while len(self._tasks) >= self._config.max_parallel:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    @property
    def _is_stopped(self) -> bool:
        return self._config.on_error == "stop" and self._has_failure.is_set()


async def _wait_first(*waits: Awaitable[object]) -> None:
    """Wait for the first to finish, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _not_sent() -> Fault:
    return Fault(FaultKind.NOT_SENT, "A file before this one failed, and the route's on_error says stop.")
