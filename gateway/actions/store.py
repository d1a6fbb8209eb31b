"""store: write every file of an upload to a directory or bucket, all of them or none; 201 describes what was stored."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from gateway.actions.policies import upload_policy
from gateway.actions.upload import check_upload, form_boundary, form_digest, raw_head, raw_name, refuse_empty_form
from gateway.config import Route
from gateway.config.actions import Store
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import DigestFactory, FileHead, FilteredFile, FilterFactory, TransformFactory, head_of
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, FormParts, PartKind
from gateway.storage import NameRules, Storage, Upload
from gateway.transfer import MAX_LARGE_BYTES, BodyReader, Lanes, LegLimits, Transfer

#: What the response says of one file.
_Description = dict[str, str | int | None]


class StoreAction:
    """Stores the uploads of one route."""

    def __init__(
        self,
        route: Route,
        config: Store,
        storage: Storage,
        lanes: Lanes,
        factories: Sequence[FilterFactory],
    ) -> None:
        self._lanes = lanes
        self._factories = factories
        self._route = route
        self._storage = storage
        self._is_hashed = not _has_digest(factories)
        self._rules = NameRules(config.name, config.if_exists)
        # Writing has no time limit: a sync of gigabytes may take minutes, and a stuck disk cannot be cancelled.
        self._policy = upload_policy(route, storage.write_leg, LegLimits())

    async def close(self) -> None:
        """Wait until what was cancelled is removed; files are closed with their exchange."""
        await self._storage.close()

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault. Whatever ends it early, no file of the upload stays."""
        limit = check_upload(exchange, self._route)
        refuse_empty_form(exchange)
        boundary = form_boundary(exchange)
        if exchange.body is None and exchange.headers.first(b"content-length") is None:
            raise Fault(FaultKind.LENGTH_REQUIRED, "An upload needs a body: send Content-Length or chunked (curl -T).")
        exchange.waits.wait_on(self._storage.write_leg)
        async with self._storage.open_upload(self._rules) as upload:
            await upload.check_room(exchange.length)
            if exchange.body is None:
                described = [await self._store_empty(exchange, matched, upload)]
                stored = await upload.commit()
            else:
                exchange.send_continue()
                whole = form_digest(exchange, self._factories) if boundary is not None else []
                transfer = exchange.begin_upload(self._policy, [limit, *whole], whole)
                with transfer, transfer.watched():
                    # The storage makes room for a raw body before it is read.
                    transfer.meter.wait_on(self._storage.write_leg)
                    with self._lanes.read_body(transfer, exchange.body, MAX_LARGE_BYTES) as body:
                        if boundary is None:
                            described = [await self._store_raw(exchange, matched, upload, transfer, body)]
                        else:
                            described = await self._store_form(exchange, upload, boundary, transfer, body)
                    # Inside the transfer: it fails if the commit fails.
                    stored = await upload.commit()
        for description, file in zip(described, stored, strict=True):
            description |= {"name": file.name, "size": file.size}
            if file.sha256 is not None:
                description["sha256"] = file.sha256
        document = json.dumps({"files": described}).encode() + b"\n"
        await exchange.reply(201, [(b"Content-Type", b"application/json")], document)

    async def _store_form(
        self,
        exchange: Exchange,
        upload: Upload,
        boundary: bytes,
        transfer: Transfer,
        body: BodyReader,
    ) -> list[_Description]:
        """Store every file part; read form fields and drop them. Return a description per file."""
        limits, route = self._route.limits, self._route.name
        described: list[_Description] = []
        content = FormContent(boundary, limits, route, body)
        async for part in FormParts(content, boundary, limits, route):
            if part.kind is PartKind.FILE:
                file = head_of(part, exchange.client.address)
                facts = await self._fill(upload, file, part.read, transfer)
                kind = part.content_type or "text/plain"
                described.append({**facts, "field": file.field, "filename": file.filename, "type": kind})
            else:
                facts = {}
                await part.skip()
            exchange.record_part(part.number, part.kind, part.size, Outcome.COMPLETE, facts)
        if not described:
            raise Fault(FaultKind.BAD_MULTIPART, "The form has no file: send one with a name (curl -F file=@NAME).")
        return described

    async def _store_raw(
        self,
        exchange: Exchange,
        matched: RouteMatch,
        upload: Upload,
        transfer: Transfer,
        body: BodyReader,
    ) -> _Description:
        filename, kind = raw_name(exchange, matched), _content_type(exchange)
        file = raw_head(exchange, filename)
        facts = await self._fill(upload, file, body.pull, transfer)
        return {**facts, "field": None, "filename": filename, "type": kind}

    async def _fill(
        self, upload: Upload, file: FileHead, read: Callable[[], Awaitable[bytes]], transfer: Transfer
    ) -> dict[str, str | int]:
        """Write a file with its filters applied; return their facts."""
        incoming = await upload.begin(file.filename, is_hashed=self._is_hashed)
        filtered = FilteredFile(self._factories, file, read, transfer.meter) if self._factories else None
        try:
            pull = read if filtered is None else filtered.read
            while data := await pull():
                await incoming.write(data)
        finally:
            if filtered is not None:
                await filtered.close()
        await incoming.finish()
        return {} if filtered is None else filtered.facts()

    async def _store_empty(self, exchange: Exchange, matched: RouteMatch, upload: Upload) -> _Description:
        filename = raw_name(exchange, matched)
        await (await upload.begin(filename)).finish()
        return {"field": None, "filename": filename, "type": _content_type(exchange)}


def _has_digest(factories: Sequence[FilterFactory]) -> bool:
    """Return whether the digest filter hashes the bytes that are stored: no filter after it changes them."""
    for factory in reversed(factories):
        if isinstance(factory, DigestFactory):
            return True
        if isinstance(factory, TransformFactory):
            return False
    return False


def _content_type(exchange: Exchange) -> str:
    return (exchange.headers.first(b"content-type") or b"application/octet-stream").decode("latin-1")
