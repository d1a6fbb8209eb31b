"""The clients and upstreams of the tests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.peers import Wire


@pytest.mark.timeout(5)
async def test_limit_of_a_caller_ends_a_read_also_if_bytes_arrive_at_the_same_time() -> None:
    """It was lost, and the fuzzer of request heads waited for the next byte of a kept connection."""
    no_writer: Any = None
    reader = asyncio.StreamReader()
    wire = Wire(reader, no_writer)

    async def read() -> None:
        async with asyncio.timeout(0.01) as limit:
            # In the iteration of the loop in which the limit ends.
            asyncio.get_running_loop().call_at((limit.when() or 0) - 1e-9, reader.feed_data, b"bytes")
            await wire.read_to_end()

    with pytest.raises(TimeoutError):
        await read()
