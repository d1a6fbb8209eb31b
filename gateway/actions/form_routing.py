"""Choose between routes by the form fields that come before the first file.

The conditions need the body, so this runs before the action. What was read is held, at most `max_held` bytes, and given
back to the body: the action reads it again.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Sequence

from gateway.actions.body_shape import check_held
from gateway.actions.upload import form_boundary
from gateway.config import Route
from gateway.downstream import Exchange, ReceivedBody
from gateway.errors import Fault, FaultKind
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, FormParts, PartKind


async def match_form_route(exchange: Exchange, candidates: Sequence[RouteMatch]) -> RouteMatch:
    """Return the first candidate whose field conditions hold; the last may have none. Raises Fault."""
    if not candidates[0].route.match.form_fields:
        return candidates[0]
    exchange.check_expectation()
    boundary = form_boundary(exchange)
    fields = await _read_fields(exchange, boundary, candidates[0]) if boundary is not None else {}
    for matched in candidates:
        if all(_holds(fields.get(name), pattern, name) for name, pattern in matched.route.match.form_fields.items()):
            return matched
    names = ", ".join(sorted({name for matched in candidates for name in matched.route.match.form_fields}))
    raise Fault(
        FaultKind.LATE_FIELD,
        f"The form fields that stand before the first file choose no route ({names}): send them first, with values "
        "that match a route, or add a route without match.form_fields.",
    )


def _holds(values: list[str] | None, pattern: str, name: str) -> bool:
    if values is None:
        return False
    if len(values) > 1:
        # Upstream parsers differ in which value they use.
        raise Fault(FaultKind.BAD_MULTIPART, f"Form field {name!r} decides the route and is sent twice: send it once.")
    return fnmatch.fnmatchcase(values[0], pattern)


async def _read_fields(exchange: Exchange, boundary: bytes, first: RouteMatch) -> dict[str, list[str]]:
    """Return the fields before the first file, by name, and give the body back. Raises Fault."""
    body = exchange.body
    if body is None:
        return {}
    route, idle = first.route, first.route.timeouts.idle
    held = _HeldBody(exchange, body)
    exchange.send_continue()
    try:
        async with asyncio.timeout(idle):
            return await _fields_of(FormContent(boundary, route.limits, route.name, held), boundary, route)
    except TimeoutError:
        raise Fault(
            FaultKind.CLIENT_IDLE, f"The fields that choose the route did not come within {idle:g} s: send them first."
        ) from None
    finally:
        if held.received:
            body.unread([bytes(held.received)])


class _HeldBody:
    """Holds what is read of a body."""

    def __init__(self, exchange: Exchange, body: ReceivedBody) -> None:
        self._body = body
        self.take_turn = exchange.take_turn
        self.received = bytearray()

    async def pull(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        if self.received:
            await self.take_turn()
        chunk = await self._body.read()
        self.received += chunk
        return chunk


async def _fields_of(content: FormContent, boundary: bytes, route: Route) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    async for part in FormParts(content, boundary, route.limits, route.name):
        if part.kind is PartKind.FILE:
            break
        value = bytearray()
        check_held(route, content.position)
        while data := await part.read():
            value += data
            check_held(route, content.position)
        fields.setdefault(part.disposition.name, []).append(value.decode("utf-8", "replace"))
    return fields
