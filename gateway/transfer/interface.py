"""What a transfer works with: the source of its chunks, the filters that judge them, and its owner."""

from __future__ import annotations

from typing import Protocol

from gateway.errors import Fault


class Source(Protocol):
    """Where chunks come from."""

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault if the body breaks off."""
        ...


class Filter(Protocol):
    """Sees every chunk before it is passed on."""

    #: Whether it keeps chunks or shows them to others: they are smaller then.
    keeps_chunks: bool

    def feed_data(self, chunk: bytes, /) -> bool | None:
        """Judge a chunk. Return True if it has more to do with it: call again with b"". Raises Fault."""
        ...

    def finish(self) -> None:
        """Judge the end of the body. Raises Fault."""
        ...

    def close(self) -> None:
        """Release what is held, however the body ended."""
        ...


class AsyncFilter(Protocol):
    """Has work to do for a chunk that cannot be done at once."""

    async def flush(self) -> None:
        """Do that work, before the chunk is passed on. Raises Fault."""
        ...


class Owner(Protocol):
    """The exchange of a transfer: asked at its end why it was cancelled."""

    @property
    def is_delivered(self) -> bool:
        """Whether the client had received its whole response before it left."""
        ...

    def why_cancelled(self) -> Fault:
        """Return why the transfer was cancelled."""
        ...
