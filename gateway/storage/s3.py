"""The calls to an object store: a bucket and a prefix, through obstore, with its errors turned into faults.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...).
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.errors import Fault, FaultKind
from gateway.transfer import descriptor_fault

#: S3's least part size is 5 MiB; at most 10,000 parts of this size make an object of 78 GiB.
_PART_BYTES: Final = 8 * 2**20
#: Parts sent at once. Each is held in memory until the store has it.
_PARALLEL_PARTS: Final = 2
_CHUNK_BYTES: Final = 256 * 1024
#: obstore limits the time of a whole request, to 30 s by default, which cuts the download of a slow client.
_NO_LIMIT: Final = timedelta(days=3650)
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of an object."""

    size: int
    modified_seconds: float
    #: The store's entity tag, None where it has none.
    etag: str | None


def load_object_store() -> Any:
    """Return the library that talks to object stores; loading it takes a while. Raises ImportError without it."""
    for name in ("obstore.store", "obstore.exceptions"):
        importlib.import_module(name)
    # Any: it is an optional extra.
    return importlib.import_module("obstore")


class BucketClient:
    """A bucket and a prefix. Raises ImportError where obstore is not installed.

    A request that gets no byte of its response for `idle_seconds` fails; what may be repeated is, up to that time.
    """

    def __init__(self, url: str, endpoint: str | None, region: str | None, idle_seconds: float) -> None:
        self._library = load_object_store()
        parts = urlsplit(url)
        options = _limits(idle_seconds)
        if endpoint is not None:
            options["endpoint"] = endpoint
            options["client_options"]["allow_http"] = endpoint.startswith("http:")
        if region is not None:
            options["region"] = region
        stores = importlib.import_module("obstore.store")
        # obstore starts its threads with the first call: without a free descriptor they panic, then and ever after.
        with contextlib.suppress(RuntimeError):  # no loop runs: nothing is served either
            self._library.put_async(stores.MemoryStore(), "start", b"")
        self._store: Any = stores.S3Store(parts.netloc, prefix=parts.path.strip("/") or None, **options)
        # obstore raises its own errors, and Python's for some (FileNotFoundError, PermissionError).
        own_error: type[Exception] = importlib.import_module("obstore.exceptions").BaseError
        self._errors = (own_error, OSError, ValueError)

    async def head(self, key: str) -> ObjectInfo | None:
        """Return what the store says of an object, None if there is none. Raises Fault."""
        with self._faults():
            try:
                meta = await self._library.head_async(self._store, key)
            except FileNotFoundError:
                return None
        return ObjectInfo(meta["size"], meta["last_modified"].timestamp(), meta["e_tag"])

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store an object as a multipart upload, or in one request if it is small. Raises Fault.

        An exception raised by `chunks` aborts the multipart upload and is raised here. Cancelling does not abort it:
        the parts stay in the store.
        """
        with self._faults():
            await self._library.put_async(
                self._store, key, chunks, chunk_size=_PART_BYTES, max_concurrency=_PARALLEL_PARTS
            )

    async def get(self, key: str, first: int, end: int, etag: str | None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `first` up to `end` (excluded) of the version with this entity tag. Raises Fault."""
        options: dict[str, Any] = {"range": (first, end)}
        if etag is not None:
            options["if_match"] = etag
        with self._faults():
            response = await self._library.get_async(self._store, key, options=options)
            async for chunk in response.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. Raises Fault."""
        with self._faults():
            await self._library.delete_async(self._store, list(keys))

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self._errors as exc:
            # The text of the error may hold addresses and keys: it goes to the log only.
            raise descriptor_fault() or Fault(
                FaultKind.OBJECT_STORE_FAILED,
                f"The object store failed ({type(exc).__name__}): check its endpoint, bucket and credentials, and its "
                "log.",
                reason=str(exc),
            ) from exc


def _limits(idle_seconds: float) -> dict[str, Any]:
    """Return the timeouts of obstore: silence is timed, size is not."""
    client_options: dict[str, Any] = {"timeout": _NO_LIMIT}
    if idle_seconds == math.inf:
        return {"client_options": client_options}
    idle = timedelta(seconds=idle_seconds)
    client_options |= {"read_timeout": idle, "connect_timeout": min(idle, timedelta(seconds=_CONNECT_SECONDS))}
    return {"client_options": client_options, "retry_config": {"retry_timeout": idle}}
