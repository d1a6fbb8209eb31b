"""Clients of the ops API for tests, and transfers that stay under way for as long as a test needs them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

import aiohttp
import jsonschema

from tests.peers import TIMEOUT_SECONDS, RunningGateway, Wire, wait_until

OPENAPI: dict[str, Any] = json.loads((resources.files("gateway.ops") / "openapi.json").read_bytes())


async def ask(gateway: RunningGateway, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    """Send a request to the ops port; return the status and the JSON document, which must be as openapi.json says."""
    async with aiohttp.ClientSession() as session:
        async with session.request(method, gateway.ops_url + path, headers=headers) as response:
            document = json.loads(await response.read())
            check(document, path, method, response.status, response.content_type)
            return response.status, document


def check(document: Any, path: str, method: str, status: int, content_type: str) -> None:
    """Assert that a document is as openapi.json says."""
    paths = OPENAPI["paths"]
    operation = (paths.get(path) or paths["/api/transfers/{id}"])[method.lower()]
    schema = operation["responses"][str(status)]["content"][content_type]["schema"]
    validate(document, schema)


def validate(document: Any, schema: dict[str, Any]) -> None:
    """Assert that a document has a schema of openapi.json."""
    jsonschema.Draft202012Validator(
        {**schema, "components": OPENAPI["components"]}, format_checker=jsonschema.FormatChecker()
    ).validate(document)


async def rows(gateway: RunningGateway) -> list[dict[str, Any]]:
    """Return the transfers under way."""
    status, document = await ask(gateway, "/api/transfers")
    assert status == 200
    found: list[dict[str, Any]] = document["transfers"]
    return found


async def wait_row(gateway: RunningGateway, fits: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait until a transfer under way fits; return its row."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            for row in await rows(gateway):
                if fits(row):
                    return row
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def upload(gateway: RunningGateway, sent: bytes, length: int, target: str = "/") -> AsyncIterator[Wire]:
    """Send a part of an upload of this length, and keep the connection."""
    client = await gateway.connect()
    head = f"POST {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    await client.send(head.encode() + sent)
    try:
        yield client
    finally:
        await client.close()


async def read_all(wire: Wire) -> None:
    """Script of an upstream that reads until the gateway closes the connection."""
    await wire.read_to_end()


async def wait_received(wires: list[Wire], size: int) -> None:
    """Wait until an upstream has received this many bytes."""
    await wait_until(functools.partial(_has_received, wires, size))


def _has_received(wires: list[Wire], size: int) -> bool:
    return sum(len(wire.received) for wire in wires) >= size
