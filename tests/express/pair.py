"""Two gateways, one with the express lane and one without; each has an upstream that follows the case of a request."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
from collections.abc import AsyncIterator
from typing import Any, Final

from gateway.observe.stats import Histogram, RouteStats, Stats
from tests.express.cases import MAX_BODY_BYTES, Case
from tests.peers import OK, RawUpstream, RunningGateway, Wire, read_body, run_gateway, wait_until

_CASE: Final = re.compile(rb"\r\nx-case: *([0-9]+)", re.IGNORECASE)
#: What differs between two exchanges in any case, with what takes its place.
_VARYING: Final = (
    (re.compile(rb"(?i)(\r\nx-request-id: )[0-9a-f]{32}(?=\r)"), rb"\1ID"),
    (re.compile(rb'"request_id": ?"[0-9a-f]{32}"'), b"ID"),
    (re.compile(rb"(?i)(\r\ntraceparent: 00-)[0-9a-f]{32}-[0-9a-f]{16}"), rb"\1TRACE"),
    (re.compile(rb"(?i)(\r\ndate: )\w{3}, \d\d \w{3} 20\d\d \d\d:\d\d:\d\d GMT"), rb"\1DATE"),
    (re.compile(rb"127\.0\.0\.1:\d{4,5}"), b"ENDPOINT"),
)
_VARYING_KEYS: Final = ("time", "seconds", "first_byte_seconds", "wait_seconds", "request_id", "trace_id", "endpoint")
_LANES: Final = ("upload_lane", "download_lane")


def without_varying(data: bytes) -> bytes:
    """Return bytes of a wire without ids, dates and addresses."""
    for pattern, replacement in _VARYING:
        data = pattern.sub(replacement, data)
    return data


class CaseUpstream:
    """Two endpoints that serve the cases and keep what they received of each."""

    def __init__(self) -> None:
        self.cases: dict[int, Case] = {}
        #: By case: every request that came, with the number of the endpoint.
        self.received: dict[int, list[tuple[int, bytes]]] = {}
        self.endpoints: list[RawUpstream] = []

    async def serve(self, wire: Wire, endpoint: int) -> None:
        """Serve one connection."""
        while True:
            head = await wire.read_head()
            found = _CASE.search(head)
            body = await read_body(wire, head)
            if found is None:
                await wire.send(OK)
                continue
            case = self.cases[int(found[1])]
            attempts = self.received.setdefault(case.number, [])
            attempts.append((endpoint, without_varying(head) + body))
            if case.delay_seconds:
                await asyncio.sleep(case.delay_seconds)  # the delay is what the case is about
            if case.fails_once and len(attempts) > 1:
                await wire.send(OK)
                continue
            for number, piece in enumerate(case.response):
                if number:
                    # Let the gateway receive the piece before.
                    await asyncio.sleep(0.002)  # two segments, not one
                await wire.send(piece)
            await asyncio.sleep(case.end_delay_seconds)  # as above
            if case.resets:
                wire.reset()
                return
            if case.closes:
                await wire.close()
                return


class Side:
    """One gateway of the pair, and a client with a connection that is kept as long as the gateway keeps it."""

    def __init__(self, gateway: RunningGateway, upstream: CaseUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self._client: Wire | None = None
        self._line_count = 0

    async def warm(self) -> None:
        """Have connections of the client and of both endpoints kept, and everything before ended."""
        for _ in self.upstream.endpoints:
            await self.exchange([b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"], "GET")
        traffic = self.gateway.gateway._traffic
        await wait_until(lambda: all(getattr(each, "is_waiting", True) for each in traffic.connections))

    async def exchange(self, request: list[bytes], method: str) -> tuple[bytes, dict[str, Any]]:
        """Return what the client received, and the log line; a connection that ended has a mark at its end."""
        if self._client is None:
            self._client = await self.gateway.connect()
        client = self._client
        for number, piece in enumerate(request):
            if number:
                await asyncio.sleep(0.002)  # two segments, not one
            with contextlib.suppress(ConnectionError):
                await client.send(piece)
        received, is_open = await _receive(client, method)
        if not is_open:
            await client.close()
            self._client = None
        self._line_count += 1
        line = await self.gateway.wait_log_line(self._line_count)
        assert len(self.gateway.log) == self._line_count
        return without_varying(received), line

    async def run(self, case: Case) -> dict[str, Any]:
        """Run a case; return everything that must not depend on the lane, and the lanes."""
        self.upstream.cases[case.number] = case
        await self.warm()
        try:
            received, line = await self.exchange(case.request, case.method)
        except TimeoutError:
            raise AssertionError(f"no end of {case}") from None
        await wait_until(lambda: self.gateway.gateway.exchange_count == 0)
        line = copy.copy(line)
        lanes = {line.pop(key) for key in _LANES}
        for key in _VARYING_KEYS:
            line.pop(key)
        requests = self.upstream.received.get(case.number, [])
        return {"line": line, "response": received, "requests": requests, "lanes": lanes}

    async def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.close()


async def _receive(client: Wire, method: str) -> tuple[bytes, bool]:
    """Receive a response; return it, and whether the connection is open after it."""
    received = bytearray()
    try:
        while True:
            head = await client.read_head()
            received += head
            status = int(head[9:12])
            if status >= 200:
                break
        lower = head.lower()
        if method != "HEAD" and status not in (204, 304):
            if b"\r\ntransfer-encoding: chunked" in lower:
                while True:
                    # How a body is divided into chunks depends on how it was received.
                    size = int(await client.read_until(b"\r\n"), 16)
                    received += (await client.read_exactly(size + 2))[:-2]
                    if not size:
                        received += b" [last chunk]"
                        break
            elif found := re.search(rb"\r\ncontent-length: *([0-9]+)", lower):
                received += await client.read_exactly(int(found[1]))
            else:
                received += await client.read_to_end()
        if b"\r\nconnection: close" not in lower:
            return bytes(received), True
        received += await client.read_to_end()
    except asyncio.IncompleteReadError as exc:
        received += exc.partial
        received += b" [cut]"
    except ConnectionError:
        received += b" [reset]"
    return bytes(received) + b" [end]", False


@contextlib.asynccontextmanager
async def run_side(lanes: str) -> AsyncIterator[Side]:
    """Run a gateway with this setting of `lanes`, its upstream and its client."""
    upstream = CaseUpstream()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(2):
            serve = _serving(upstream, number)
            upstream.endpoints.append(await stack.enter_async_context(RawUpstream(serve)))
        gateway = await stack.enter_async_context(run_gateway(_config(upstream, lanes)))
        side = Side(gateway, upstream)
        try:
            yield side
        finally:
            await side.close()


def _serving(upstream: CaseUpstream, number: int) -> Any:
    async def serve(wire: Wire) -> None:
        await upstream.serve(wire, number)

    return serve


def _config(upstream: CaseUpstream, lanes: str) -> dict[str, Any]:
    limits = {"max_body": MAX_BODY_BYTES, "max_parts": 8}
    urls = [each.url for each in upstream.endpoints]
    return {
        "lanes": lanes,
        "upstreams": {"up": {"endpoints": urls}, "few": {"endpoints": urls[:1], "max_in_flight": 2}},
        "routes": [
            {"name": "r", "match": {"prefix": "/"}, "forward": {"upstream": "up"}, "limits": limits},
            {
                "name": "opaque",
                "match": {"prefix": "/opaque"},
                "forward": {"upstream": "up", "multipart": "opaque"},
                "limits": limits,
            },
            {
                "name": "keep",
                "match": {"prefix": "/keep"},
                "forward": {"upstream": "up", "host": "preserve", "rewrite": "/kept"},
                "limits": limits,
            },
            {
                "name": "field",
                "match": {"prefix": "/fields", "form_fields": {"f0": "value"}},
                "forward": {"upstream": "few"},
                "limits": limits,
            },
            {"name": "limited", "match": {"prefix": "/limited"}, "forward": {"upstream": "few"}, "limits": limits},
        ],
    }


def count_everything(stats: Stats) -> dict[str, Any]:
    """Return every number that must not depend on the lane: counts and bytes, and how many times were measured."""
    return {
        **{f"route {name}": _count_route(route) for name, route in stats.routes.items()},
        **{
            f"upstream {name}": {
                "queue": (each.queue_length, sum(each.queue_seconds.counts)),
                "responses": sum(each.response_seconds.counts),
                "endpoints": [(list(end.requests.items()), end.in_flight) for end in each.endpoints.values()],
            }
            for name, each in stats.upstreams.items()
        },
    }


def _count_route(route: RouteStats) -> dict[str, Any]:
    counted: dict[str, Any] = {
        "in_flight": route.in_flight,
        "requests": dict(route.requests),
        "failures": dict(route.failures),
        "faults": dict(route.faults),
        "parts": (dict(route.parts), route.part_sizes.counts, route.part_sizes.total, dict(route.part_outcomes)),
        "durations": sum(route.durations.counts),
        "first bytes": sum(route.first_bytes.counts),
    }
    for direction, transfer in route.transfers.items():
        counted[direction.value] = {
            "moved": dict(transfer.moved),
            "in_flight": transfer.in_flight,
            "outcomes": dict(transfer.outcomes),
            "transfers": sum(transfer.lanes.values()),
            "sizes": (transfer.sizes.counts, transfer.sizes.total),
            # A body that comes in two segments may be one chunk or two.
            "chunk bytes": transfer.chunk_sizes.total,
            "chunk rates": _is_counted(transfer.chunk_rates, transfer.chunk_sizes),
            "rates": sum(transfer.rates.counts),
        }
    return counted


def _is_counted(rates: Histogram, sizes: Histogram) -> bool:
    return sum(rates.counts) == sum(sizes.counts)
