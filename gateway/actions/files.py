"""files: send a file to the client, with ranges and conditional requests (decided in `gateway.http.ranges`)."""

from __future__ import annotations

import mimetypes
from pathlib import PurePosixPath
from typing import Final

from gateway.actions.policies import file_policy
from gateway.config import Route
from gateway.downstream import Exchange
from gateway.http.headers import default_lines, encode_lines
from gateway.http.ranges import Representation, is_unchanged, select_range
from gateway.http.routing import RouteMatch
from gateway.storage import Storage, StoredFileReader
from gateway.transfer import Lanes

# Now, not with the first file that is served: it reads the system's tables.
mimetypes.init()

#: Types of files in a coding: they are sent as they are, so it is their type and no Content-Encoding (as nginx does).
#: Brotli has no type.
_CODED_TYPES: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
_OTHER_TYPES: Final = {".zst": "application/zstd"}


def content_type_of(name: str) -> str:
    """Return the media type of a file by its name, application/octet-stream if it is not known."""
    # With a slash, so that no name is taken for a URL whose scheme is `data`, which can hold any type.
    kind, coding = mimetypes.guess_type(f"/{name}")
    if coding is not None:
        kind = _CODED_TYPES.get(coding)
    return kind or _OTHER_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


class FilesAction:
    """Serves the files of one storage."""

    def __init__(self, route: Route, storage: Storage, lanes: Lanes) -> None:
        self._storage = storage
        self._lanes = lanes
        self._policy = file_policy(route, storage.read_leg)

    async def close(self) -> None:
        """Close nothing: files are closed with their exchange."""

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault."""
        exchange.check_expectation()
        exchange.waits.wait_on(self._storage.read_leg)
        file = await self._storage.open_file(matched.rest)
        try:
            await self._send(exchange, file, matched.rest)
        finally:
            await file.close()

    async def _send(self, exchange: Exchange, file: StoredFileReader, name: str) -> None:
        current = Representation(file.size, file.etag, file.modified_seconds)
        lines = default_lines(exchange.trace) + encode_lines(current.headers())
        if is_unchanged(exchange.headers, current):
            exchange.begin_response(304, b"Not Modified", lines, None)
            return
        selected = select_range(exchange.method, exchange.headers, current)
        lines += b"Content-Type: %b\r\n" % content_type_of(name).encode()
        if selected is None:
            status, reason, length = 200, b"OK", file.size
        else:
            status, reason, length = 206, b"Partial Content", selected.last - selected.first + 1
            lines += b"Content-Range: bytes %d-%d/%d\r\n" % (selected.first, selected.last, file.size)
            file.select(selected.first, selected.last)
        if exchange.method == "HEAD":
            exchange.begin_response(status, reason, lines, length)
            return
        with exchange.begin_download(self._policy, file, length) as download:
            sink = exchange.begin_response(status, reason, lines, length)
            await self._lanes.pump_file(download, file, sink, sink.end)
