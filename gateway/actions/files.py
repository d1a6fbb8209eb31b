"""files: a file of a directory to the client, with ranges and conditions (RFC 9110 sections 13 and 14)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Final

from gateway.actions.policies import download_policy
from gateway.config import Route
from gateway.config.model import Files
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind
from gateway.http.headers import Header, default_headers
from gateway.http.routing import RouteMatch
from gateway.observe.stats import Leg
from gateway.storage import Bucket, DiskThreads, OutgoingFile, OutgoingObject, open_below, open_object
from gateway.transfer import Lanes, LegLimits
from gateway.transfer.lanes import CopyLane
from gateway.transfer.pump import pump

_RANGE: Final = re.compile(rb"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.IGNORECASE)
_MAX_DIGITS: Final = 19


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
        headers = [*default_headers(exchange.trace), *_validators(file), (b"Accept-Ranges", b"bytes")]
        if _is_unchanged(exchange, file):
            await exchange.begin_response(304, b"Not Modified", headers, None)
            return
        first, last, is_part = _select(exchange, file)
        headers.append((b"Content-Type", (mimetypes.guess_type(name)[0] or "application/octet-stream").encode()))
        if is_part:
            headers.append((b"Content-Range", b"bytes %d-%d/%d" % (first, last, file.size)))
        status, reason = (206, b"Partial Content") if is_part else (200, b"OK")
        length = last - first + 1
        if exchange.method == "HEAD":
            await exchange.begin_response(status, reason, headers, length)
            return
        file.select(first, last)
        policy = self._disk_policy if isinstance(file, OutgoingFile) else self._bucket_policy
        with exchange.begin_download(policy, file, length) as download:
            sink = await exchange.begin_response(status, reason, headers, length)
            if isinstance(file, OutgoingFile):
                await self._lanes.pump_file(download, file, sink, sink.end)
            else:
                await pump(download, CopyLane(file, sink), sink.end)


def _validators(file: OutgoingFile | OutgoingObject) -> list[Header]:
    return [(b"ETag", file.etag), (b"Last-Modified", formatdate(file.modified_seconds, usegmt=True).encode())]


def _is_unchanged(exchange: Exchange, file: OutgoingFile | OutgoingObject) -> bool:
    """Evaluate the conditions in the order of RFC 9110 section 13.2.2; say whether the answer is 304.

    Raises Fault PRECONDITION_FAILED.
    """
    if matches := exchange.headers.all(b"if-match"):
        if not _lists(matches, file.etag, is_weak=False):
            raise _precondition_failed()
    elif (since := _date(exchange, b"if-unmodified-since")) is not None and int(file.modified_seconds) > since:
        raise _precondition_failed()
    if matches := exchange.headers.all(b"if-none-match"):
        return _lists(matches, file.etag, is_weak=True)
    since = _date(exchange, b"if-modified-since")
    return since is not None and int(file.modified_seconds) <= since


def _select(exchange: Exchange, file: OutgoingFile | OutgoingObject) -> tuple[int, int, bool]:
    """Return first and last byte, and whether that is a part. Raises Fault RANGE_NOT_SATISFIABLE.

    > A server MAY ignore the Range header field. (RFC 9110 section 14.2)

    So malformed ones, several ranges at once, and ranges of a file that If-Range says has changed get the whole file.
    """
    whole = (0, file.size - 1, False)
    ranges = exchange.headers.all(b"range")
    if len(ranges) != 1 or exchange.method != "GET" or not _may_range(exchange, file):
        return whole
    matched = _RANGE.fullmatch(ranges[0])
    if matched is None or not (matched[1] or matched[2]) or max(len(matched[1]), len(matched[2])) > _MAX_DIGITS:
        return whole
    if matched[1]:
        first = int(matched[1])
        last = min(int(matched[2]), file.size - 1) if matched[2] else file.size - 1
        if matched[2] and int(matched[2]) < first:
            return whole
    else:
        first, last = max(0, file.size - int(matched[2])), file.size - 1
        if not int(matched[2]):
            first = file.size
    if first >= file.size:
        raise Fault(
            FaultKind.RANGE_NOT_SATISFIABLE,
            f"The file has {file.size} bytes, the range begins at {first}.",
            headers=((b"Content-Range", b"bytes */%d" % file.size),),
        )
    return first, last, True


def _may_range(exchange: Exchange, file: OutgoingFile | OutgoingObject) -> bool:
    """Evaluate If-Range (RFC 9110 section 13.1.5): a strong validator, or the exact date."""
    condition = exchange.headers.first(b"if-range")
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/")):
        return condition == file.etag
    return _date(exchange, b"if-range") == int(file.modified_seconds)


def _lists(values: Sequence[bytes], etag: bytes, *, is_weak: bool) -> bool:
    tags = [tag.strip() for value in values for tag in value.split(b",")]
    if is_weak:
        tags = [tag.removeprefix(b"W/") for tag in tags]
    return b"*" in tags or etag in tags


def _date(exchange: Exchange, name: bytes) -> int | None:
    """Return a date field in seconds since the epoch; one that is no date is ignored (RFC 9110 section 13.1.3)."""
    value = exchange.headers.first(name)
    if value is None:
        return None
    try:
        return int(parsedate_to_datetime(value.decode("latin-1")).timestamp())
    except (ValueError, OverflowError):
        return None


def _precondition_failed() -> Fault:
    return Fault(FaultKind.PRECONDITION_FAILED, "The file is not the one the condition names: fetch it anew.")
