"""Where objects live: a bucket and a prefix. Credentials come from the environment (AWS_ACCESS_KEY_ID and so on)."""

from __future__ import annotations

import importlib
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.errors import Fault, FaultKind

#: What S3 takes at least, but for the last: with 10,000 of them an object may have 78 GiB.
PART_BYTES: Final = 8 * 2**20
#: Parts under way at once; each is held until the store has it.
PARALLEL_PARTS: Final = 2


class Bucket:
    """A bucket and a prefix. Raises ImportError where obstore is not installed."""

    def __init__(self, url: str, endpoint: str | None, region: str | None) -> None:
        #: Typed by nobody here: an optional extra.
        self.library: Any = importlib.import_module("obstore")
        parts = urlsplit(url)
        options: dict[str, Any] = {}
        if endpoint is not None:
            options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http:")}}
        if region is not None:
            options["region"] = region
        #: What its calls raise: its own errors, and for some of them Python's (FileNotFoundError, PermissionError).
        self.errors: tuple[type[Exception], ...] = (
            importlib.import_module("obstore.exceptions").BaseError,
            OSError,
            ValueError,
        )
        stores = importlib.import_module("obstore.store")
        self.store: Any = stores.S3Store(parts.netloc, prefix=parts.path.strip("/") or None, **options)

    async def has(self, key: str) -> bool:
        """Say whether there is such an object. Raises Fault."""
        try:
            await self.library.head_async(self.store, key)
        except FileNotFoundError:
            return False
        except self.errors as exc:
            raise store_fault(exc) from exc
        return True


def store_fault(exc: Exception) -> Fault:
    """Return what a failure of the store means. Its text stays in the log: it may hold addresses and keys."""
    return Fault(
        FaultKind.OBJECT_STORE_FAILED,
        f"The object store failed ({type(exc).__name__}): check its endpoint, bucket and credentials, and its log.",
    )
