"""split: every file of a form its own upstream request, as its bytes arrive; one document of all answers.

Files go upstream in the order of the form, one at a time, since they come one at a time; while earlier answers are
awaited the next file streams already. Files are not held; responses are, up to `max_response_bytes`, because the
status of the whole stands before them. What the client does wrong fails the whole exchange and cuts the file on its
way; what an upstream does wrong is that file's entry in the document.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Final

from gateway.actions.body_shape import HeldFields
from gateway.actions.file_request import FileRequest, FileResult, ResponseBudget, describe
from gateway.actions.policies import upload_policy, upstream_limits
from gateway.actions.upload import check_upload, form_boundary, form_digest
from gateway.config import Route
from gateway.config.model import Split
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FilterFactory, head_of
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, Part, PartKind, read_form
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
        self._course = upload_policy(route, Leg.UPSTREAM_WRITE, upstream_limits(route, upstream.idle_seconds))

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault; cancelling cuts every file on its way."""
        exchange.named.upstream = self.upstream.name
        limit = check_upload(exchange, self.route)
        boundary, body = form_boundary(exchange), exchange.body
        if boundary is None or body is None:
            raise Fault(
                FaultKind.NOT_A_FORM, "This route takes files in a form: send multipart/form-data (curl -F file=@NAME)."
            )
        async with contextlib.AsyncExitStack() as first:
            # A place before the body is asked for: the first file's.
            await first.enter_async_context(self.upstream.capacity)
            exchange.send_continue()
            whole = form_digest(exchange, self.factories)
            filters: list[Filter] = [limit, *whole]
            with exchange.begin_upload(self._course, filters, whole) as transfer:
                run = _Run(self, exchange, matched, transfer)
                results = await run.work(self._lanes.read_body(transfer, body), boundary, first)
        if not results:
            raise Fault(FaultKind.BAD_MULTIPART, "The form has no file: send one with a name (curl -F file=@NAME).")
        status = 200 if all(result.has_succeeded for result in results) else _MULTI_STATUS
        document = describe(results, exchange.trace.request_id.decode("latin-1"))
        await exchange.reply(status, [(b"Content-Type", b"application/json")], document)


class _Run:
    """One form on its way: the fields seen so far, and what came of the files."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._has_sent = False
        self._budget = ResponseBudget(action.config.max_response_bytes, action.route.name)

    async def work(self, body: BodyReader, boundary: bytes, first: contextlib.AsyncExitStack) -> list[FileResult]:
        """Send every file and wait for every answer. Raises Fault for what the client did."""
        fault: Fault | None = None
        # Around the group: a file's own task pulls, so the body may only be let go when all have ended.
        with body:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._read_form(self._form_of(body, boundary), group, first)
                    # Perhaps not to its end, where the route says to stop; the answers may take long.
                    body.give_back()
                except Fault as exc:
                    # Raised behind the group, which would wrap it; and the answers still awaited have nobody to go to.
                    fault = exc
                    for task in self._tasks:
                        task.cancel()
        for result in self._results:
            outcome = fault.outcome if fault is not None and not result.status else result.outcome
            self._exchange.record_part(result.file.number, PartKind.FILE, result.size, outcome, result.facts)
        if fault is not None:
            raise fault
        return self._results

    def _form_of(self, body: BodyReader, boundary: bytes) -> AsyncIterator[Part]:
        limits, name = self._route.limits, self._route.name
        return read_form(FormContent(boundary, limits, name, body.pull), boundary, limits, name)

    async def _read_form(
        self, form: AsyncIterator[Part], group: asyncio.TaskGroup, first: contextlib.AsyncExitStack
    ) -> None:
        transfer = self._transfer
        while (part := await self._next_part(form)) is not None:
            if part.kind is PartKind.FIELD:
                continue
            with transfer.unwatched():
                await self._wait_for_place()
            if self._is_stopped:
                self._results.append(FileResult(head_of(part, self._exchange.client), fault=_stopped()))
            else:
                await self._send(part, group, first)
            if self._is_stopped:
                transfer.end(Outcome.EARLY_RESPONSE)
                return

    async def _send(self, part: Part, group: asyncio.TaskGroup, first: contextlib.AsyncExitStack) -> None:
        """Send one file; returns when its bytes have gone, or nobody takes them any more."""
        file_request = FileRequest(
            self._config,
            self._exchange,
            self._matched,
            part,
            held=self._held.fields,
            factories=self._factories,
            transfer=self._transfer,
            framing=self._upstream.framing,
        )
        self._results.append(file_request.result)
        with self._transfer.watched():
            if not await self._prepare(file_request, part):
                return
        slot = self._upstream.capacity if self._has_sent else first.pop_all()
        self._has_sent = True
        task = group.create_task(self._deliver(file_request, slot), name=f"file {part.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with self._transfer.unwatched():
            await file_request.connected.wait()
        with self._transfer.watched(file_request.pending):
            await self._stream(file_request, part, task)

    async def _next_part(self, form: AsyncIterator[Part]) -> Part | None:
        """Return the next part; a field is read to its end and held."""
        with self._transfer.watched():
            part = await anext(form, None)
            if part is not None and part.kind is PartKind.FIELD:
                await self._held.read(part)
                self._exchange.record_part(part.number, PartKind.FIELD, part.size, Outcome.COMPLETE)
            return part

    @property
    def _is_stopped(self) -> bool:
        return self._config.on_error == "stop" and self._failed.is_set()

    async def _wait_for_place(self) -> None:
        while len(self._tasks) >= self._config.max_parallel:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _prepare(self, file_request: FileRequest, part: Part) -> bool:
        """Show the first bytes to the filters that must see them; say whether the file may be sent."""
        try:
            await file_request.prepare()
        except Fault as fault:
            await file_request.end()
            if file_request.source_fault is not None:
                raise
            file_request.result.fault = fault
            self._failed.set()
            async for _ in _data_of(part):
                pass
            return False
        return True

    async def _deliver(self, file_request: FileRequest, slot: contextlib.AbstractAsyncContextManager[object]) -> None:
        """Send one file and take its answer."""
        try:
            async with slot:
                response = await self._upstream.send(
                    self._exchange.method, file_request.make, self._exchange.record_endpoint
                )
                async with response:
                    await file_request.take(response, self._budget, self._upstream.idle_seconds)
        except Fault as fault:
            file_request.result.fault = fault
        finally:
            await file_request.end()
        if not file_request.result.has_succeeded:
            self._failed.set()

    async def _stream(self, file_request: FileRequest, part: Part, task: asyncio.Task[None]) -> None:
        """Wait until the file's bytes have gone, or nobody takes them any more; then read the rest to nowhere."""
        stopping = self._failed.wait() if self._config.on_error == "stop" else asyncio.Event().wait()
        await _wait_first(file_request.released.wait(), stopping)
        if not file_request.released.is_set():
            # A file before it failed, and the route says to stop: this one is cut.
            task.cancel()
            await asyncio.wait([task])
            file_request.result.fault = _stopped()
        if file_request.source_fault is not None:
            raise file_request.source_fault
        if not self._is_stopped:
            async for _ in _data_of(part):
                pass


async def _wait_first(*waits: Awaitable[object]) -> None:
    """Wait for the first, and drop the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _data_of(part: Part) -> AsyncIterator[bytes]:
    while data := await part.read():
        yield data


def _stopped() -> Fault:
    return Fault(FaultKind.NOT_SENT, "A file before this one failed, and the route's on_error says stop.")
