"""`gateway top`: transfers, upstreams and what is wrong, in the terminal; from the API of the ops port.

The screen needs the extra `top` (textual); `--once` and `--json` do not.
"""

from __future__ import annotations

import json

from gateway.top.client import OpsClient, OpsError
from gateway.top.rows import show_table

__all__ = ["OpsError", "read_once", "run_screen"]


async def read_once(url: str, token: str, *, is_json: bool) -> str:
    """Return what is under way now, as text or as the JSON of /api/snapshot. Raises OpsError."""
    async with OpsClient(url, token) as client:
        snapshot = await client.snapshot()
    return json.dumps(snapshot, indent=2) if is_json else show_table(snapshot)


async def run_screen(url: str, token: str) -> None:
    """Run the screen until the user leaves it. Raises OpsError if the port cannot be read, or without the extra."""
    try:
        # Heavy, and not there without the extra.
        from gateway.top.screen import TopApp  # noqa: PLC0415 (see above)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"textual", "rich"}:
            raise
        raise OpsError(
            "the screen needs the extra `top`: pip install 'streaming-gateway[top]'; or use gateway top --once"
        ) from exc
    async with OpsClient(url, token) as client:
        # A mistake in the address is an error of the command, not a line on an empty screen.
        await client.snapshot()
        await TopApp(client).run_async()
