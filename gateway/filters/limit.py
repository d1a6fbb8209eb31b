"""The limit on the size of a whole request body, enforced before the chunk that exceeds it is passed on."""

from __future__ import annotations

from gateway.errors import Fault, FaultKind
from gateway.http.limits import limit_fault


class BodyLimit:
    """Counts a request body against `max_body` (bytes).

    `check` refuses a declared Content-Length before the first byte; `feed_data` counts what is received.
    """

    keeps_chunks = False

    def __init__(self, limit: float, route: str) -> None:
        self._limit = limit
        self._route = route
        self._received = 0

    def check(self, declared: int) -> None:
        """Raise Fault BODY_TOO_LARGE for a declared length over the limit."""
        if declared > self._limit:
            raise self._fault(declared, is_declared=True)

    def feed_data(self, chunk: bytes) -> None:
        """Count a chunk. Raises Fault BODY_TOO_LARGE; then the chunk must not be passed on."""
        self._received += len(chunk)
        if self._received > self._limit:
            raise self._fault(self._received, is_declared=False)

    def finish(self) -> None:
        """Do nothing: the end of a body cannot exceed the limit."""

    def close(self) -> None:
        """Do nothing: the counter holds no resources."""

    def _fault(self, received: int, *, is_declared: bool) -> Fault:
        return limit_fault(
            FaultKind.BODY_TOO_LARGE,
            self._route,
            "limits.max_body",
            self._limit,
            received,
            what=f"Upload to route {self._route!r}",
            is_declared=is_declared,
        )
