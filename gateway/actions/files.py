"""files: send a file to the client, with ranges and conditional requests (decided in `gateway.http.ranges`)."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from gateway.actions.policies import download_policy
from gateway.config import Route
from gateway.config.model import Files
from gateway.downstream import Exchange
from gateway.http.headers import default_headers
from gateway.http.ranges import Representation, is_unchanged, select_range
from gateway.http.routing import RouteMatch
from gateway.observe.stats import Leg
from gateway.storage import Bucket, DiskThreads, OutgoingFile, OutgoingObject, open_below, open_object
from gateway.transfer import Lanes, LegLimits
from gateway.transfer.lanes import CopyLane
from gateway.transfer.pump import pump


class FilesAction:
    """The action of one route."""

    def __init__(self, route: Route, config: Files, disk_threads: DiskThreads, lanes: Lanes) -> None:
        self._lanes = lanes
        limits = LegLimits(route.timeouts.idle)
        self._disk_policy = download_policy(route, Leg.DISK_READ, limits)
        self._bucket_policy = download_policy(route, Leg.UPSTREAM_READ, limits)
        self._directory = Path(config.directory or "")
        self._bucket = Bucket(config.url, config.endpoint, config.region) if config.url is not None else None
        self._disk_threads = disk_threads

    async def close(self) -> None:
        """Close nothing: files are closed with their exchange."""

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault."""
        exchange.check_expectation()
        file: OutgoingFile | OutgoingObject
        if self._bucket is not None:
            file = await open_object(self._bucket, matched.rest)
        else:
            file = await open_below(self._disk_threads, self._directory, matched.rest)
        try:
            await self._send(exchange, file, matched.rest)
        finally:
            await file.close()

    async def _send(self, exchange: Exchange, file: OutgoingFile | OutgoingObject, name: str) -> None:
        current = Representation(file.size, file.etag, file.modified_seconds)
        headers = [*default_headers(exchange.trace), *current.headers()]
        if is_unchanged(exchange.headers, current):
            await exchange.begin_response(304, b"Not Modified", headers, None)
            return
        selected = select_range(exchange.method, exchange.headers, current)
        headers.append((b"Content-Type", (mimetypes.guess_type(name)[0] or "application/octet-stream").encode()))
        if selected is None:
            status, reason, length = 200, b"OK", file.size
        else:
            status, reason, length = 206, b"Partial Content", selected.last - selected.first + 1
            headers.append((b"Content-Range", b"bytes %d-%d/%d" % (selected.first, selected.last, file.size)))
            file.select(selected.first, selected.last)
        if exchange.method == "HEAD":
            await exchange.begin_response(status, reason, headers, length)
            return
        policy = self._disk_policy if isinstance(file, OutgoingFile) else self._bucket_policy
        with exchange.begin_download(policy, file, length) as download:
            sink = await exchange.begin_response(status, reason, headers, length)
            if isinstance(file, OutgoingFile):
                await self._lanes.pump_file(download, file, sink, sink.end)
            else:
                await pump(download, CopyLane(file, sink), sink.end)
