"""The fault of a limit that a request exceeds: one wording and one set of facts for every limit of a route."""

from __future__ import annotations

from typing import Literal

from gateway.config.values import show_size
from gateway.errors import Fault, FaultKind


def limit_fault(
    kind: FaultKind,
    route: str,
    key: str,
    limit: float,
    received: int,
    *,
    what: str,
    unit: Literal["bytes", "parts"] = "bytes",
    is_declared: bool = False,
) -> Fault:
    """Return the fault of an exceeded limit.

    `key` is the config key below the route, for example `limits.max_body`; `what` is the subject of the message, for
    example "Part 3". `received` is what has come when the limit is exceeded, so the whole may be larger; with
    `is_declared` it is the declared Content-Length. `limit` and `received` are in `unit`.
    """
    config_key = f"routes.{route}.{key}"
    exceeds = f"is larger than {show_size(limit)}" if unit == "bytes" else f"has more than {int(limit)} {unit}"
    count = f"{received} declared" if is_declared else f"{received} received so far"
    return Fault(
        kind,
        f"{what} {exceeds}, {count}: raise {config_key} or send less.",
        facts={"limit": int(limit), "received": received, "config_key": config_key},
    )
