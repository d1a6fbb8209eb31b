"""The limit on a whole body, held before the chunk that breaks it is passed on."""

from __future__ import annotations

from gateway.config.values import show_size
from gateway.errors import Fault, FaultKind


class BodyLimit:
    """Counts a body against `max_body`. A declared length over it is refused before the first byte, see `check`."""

    def __init__(self, limit: float, route: str) -> None:
        self._limit = limit
        self._route = route
        self._received = 0

    def check(self, declared: int) -> None:
        """Refuse a declared length over the limit. Raises Fault BODY_TOO_LARGE."""
        if declared > self._limit:
            raise self._fault(declared, f"{declared}")

    def feed_data(self, chunk: bytes) -> None:
        """Count a chunk. Raises Fault BODY_TOO_LARGE."""
        self._received += len(chunk)
        if self._received > self._limit:
            raise self._fault(self._received, f"{self._received} and more")

    def finish(self) -> None:
        """Nothing is left to judge at the end."""

    def close(self) -> None:
        """Nothing is held."""

    def _fault(self, received: int, shown: str) -> Fault:
        key = f"routes.{self._route}.limits.max_body"
        return Fault(
            FaultKind.BODY_TOO_LARGE,
            f"Upload to route {self._route!r} has {shown} bytes, more than {show_size(self._limit)}: "
            f"raise {key} or send less.",
            facts={"limit": int(self._limit), "received": received, "config_key": key},
        )
