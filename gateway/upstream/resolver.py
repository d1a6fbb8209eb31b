"""Name lookups: in threads of their own, shared, and remembered.

getaddrinfo blocks for as long as the DNS is silent. A name occupies one thread, however many requests wait for it, and
the names come from the config, so that no number of stuck names delays another one. The wait for a lookup is limited
by the caller (`timeouts.connect`).

Addresses are fresh for _FRESH_SECONDS. Then the next request starts a lookup and waits for it for _PATIENCE_SECONDS;
while it takes longer, or fails because the DNS does, requests use the addresses from before (RFC 8767), up to
_STALE_SECONDS. A name that does not exist any more is not found at once.

A config key that makes an endpoint of every address (`resolve`) would call `look_up` on its interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.errors import Fault
from gateway.threads import Threads

MAX_LOOKUPS: Final = 128
_FRESH_SECONDS: Final = 10.0
#: A lookup that failed is not repeated earlier.
_FAILED_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 0.2
_STALE_SECONDS: Final = 3600.0
_MAX_NAMES: Final = 1000
#: The DNS has answered: the name does not exist, or has no address.
_NO_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
#: Host, port, flow and scope.
_IPV6_LENGTH: Final = 4
_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

#: Family and numeric host.
Address = tuple[int, str]
LookUp = Callable[[str, int], list[Address]]
_Name = tuple[str, int]
#: A Fault if no thread could be started for the lookup.
_Failure = socket.gaierror | Fault


@dataclass(slots=True)
class _Entry:
    """What is known of a name: addresses, or why there are none."""

    addresses: list[Address]
    failure: _Failure | None
    looked_up_at: float
    fresh_until: float
    #: Where the next answer starts: connections are spread over the addresses.
    turn: itertools.count[int] = field(default_factory=itertools.count)


@dataclass(slots=True)
class _Lookup:
    """A lookup under way."""

    started_at: float
    done: asyncio.Future[None]


class Resolver(AbstractResolver):
    """The resolver of all connections of one gateway: aiohttp's interface. Used in one event loop."""

    def __init__(
        self, threads: Threads, look_up: LookUp | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threads = threads
        self._look_up = look_up or look_up_name
        self._clock = clock
        self._entries: dict[_Name, _Entry] = {}
        self._lookups: dict[_Name, _Lookup] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises OSError, or Fault OUT_OF_THREADS.

        Cancelling ends the wait, not the lookup.
        """
        name = (host, int(family))
        entry, now = self._entries.get(name), self._clock()
        if entry is None or now >= entry.fresh_until:
            lookup = self._lookups.get(name) or self._start(name)
            is_usable = entry is not None and entry.failure is None and now - entry.looked_up_at < _STALE_SECONDS
            patience = max(0.0, lookup.started_at + _PATIENCE_SECONDS - now) if is_usable else None
            await asyncio.wait([lookup.done], timeout=patience)
            entry = self._entries[name]
        if entry.failure is not None:
            raise _copy_of(entry.failure)
        first = next(entry.turn) % len(entry.addresses)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=_NUMERIC)
            for kind, address in entry.addresses[first:] + entry.addresses[:first]
        ]

    async def close(self) -> None:
        """Close nothing: lookups end by themselves."""

    def _start(self, name: _Name) -> _Lookup:
        loop = asyncio.get_running_loop()
        lookup = self._lookups[name] = _Lookup(self._clock(), loop.create_future())
        found = self._threads.submit(self._look_up, *name)

        def report(_: Future[list[Address]]) -> None:
            # The loop is closed: the lookup was stuck at the exit.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, name, found)

        found.add_done_callback(report)
        return lookup

    def _finish(self, name: _Name, found: Future[list[Address]]) -> None:
        now = self._clock()
        before = self._entries.pop(name, None)
        failure = _failure_of(found)
        if failure is None:
            entry = _Entry(found.result(), None, now, now + _FRESH_SECONDS)
        elif before is not None and _may_outlive(before, failure, now):
            entry = before
            entry.fresh_until = now + _FAILED_SECONDS
        else:
            entry = _Entry([], failure, now, now + _FAILED_SECONDS)
        self._entries[name] = entry
        if len(self._entries) > _MAX_NAMES:
            del self._entries[next(iter(self._entries))]
        self._lookups.pop(name).done.set_result(None)


def _failure_of(found: Future[list[Address]]) -> _Failure | None:
    failure = found.exception()
    if failure is None or isinstance(failure, _Failure):
        return failure
    return socket.gaierror(getattr(failure, "errno", None) or socket.EAI_FAIL, str(failure))


def _copy_of(failure: _Failure) -> _Failure:
    """Return an exception for one caller: a traceback grows with every raise."""
    if isinstance(failure, Fault):
        seconds = failure.retry_after_seconds
        return Fault(failure.kind, failure.detail, reason=failure.reason, retry_after_seconds=seconds)
    return socket.gaierror(*failure.args)


def _may_outlive(entry: _Entry, failure: _Failure, now: float) -> bool:
    """Return whether addresses may be used after a lookup failed."""
    is_recent = now - entry.looked_up_at < _STALE_SECONDS
    has_no_name = isinstance(failure, socket.gaierror) and failure.errno in _NO_NAME
    return entry.failure is None and not has_no_name and is_recent


def look_up_name(host: str, family: int) -> list[Address]:
    """Return the addresses of a name. Blocks. Raises OSError."""
    try:
        infos = socket.getaddrinfo(host, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError as exc:
        # Not a host name: a label is empty or too long.
        raise socket.gaierror(socket.EAI_NONAME, str(exc)) from exc
    return [(int(kind), _numeric_host(address)) for kind, _, _, _, address in infos]


def _numeric_host(address: tuple[Any, ...]) -> str:
    """Return the host of a socket address, with its scope if it has one: link-local addresses of IPv6."""
    if len(address) == _IPV6_LENGTH and address[3]:
        return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])
