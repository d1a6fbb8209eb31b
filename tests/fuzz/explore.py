"""Run a check on generated values: a few that are always the same, or as many as fit into FUZZ_SECONDS.

`make fuzz SECONDS=600` sets it. A failure prints the smallest value that was found.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.peers import TIMEOUT_SECONDS, RawUpstream, RunningGateway, Script, run_gateway

T = TypeVar("T")
_EXAMPLES_A_ROUND = 500


def explore(strategy: SearchStrategy[T], check: Callable[[T], None], *, examples: int) -> int:
    """Call `check` with generated values: `examples` of them, or for FUZZ_SECONDS. Return the number of calls."""
    count = 0

    def call(value: T) -> None:
        nonlocal count
        count += 1
        check(value)

    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))
    end = time.monotonic() + seconds
    for number in itertools.count():
        _settings = settings(
            max_examples=_EXAMPLES_A_ROUND if seconds else examples,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        seed(number + (time.time_ns() if seconds else 0))(_settings(given(strategy)(call)))()
        if time.monotonic() >= end:
            break
    print(f"{count} cases")
    return count


def explore_gateway(
    script: Script,
    make_config: Callable[[RawUpstream], dict[str, Any]],
    strategy: SearchStrategy[T],
    check: Callable[[RunningGateway, RawUpstream, T], Coroutine[Any, Any, None]],
    *,
    examples: int,
) -> None:
    """Call `check` with generated values, one gateway and one upstream for all, as `explore` does."""
    with asyncio.Runner() as runner:
        upstream = RawUpstream(script)
        runner.run(upstream.__aenter__())
        context = run_gateway(make_config(upstream))
        gateway = runner.run(context.__aenter__())
        errors: list[Any] = []
        # Where a protocol raises, asyncio only closes the connection and logs it.
        runner.get_loop().set_exception_handler(lambda _, error: errors.append(error))

        async def call(value: T) -> None:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await check(gateway, upstream, value)
                assert not errors
            finally:
                errors.clear()
                for wire in upstream.wires:
                    wire.writer.transport.abort()
                upstream.wires.clear()
                gateway.log.clear()

        try:
            explore(strategy, lambda value: runner.run(call(value)), examples=examples)
        finally:
            runner.run(context.__aexit__(None, None, None))
            runner.run(upstream.__aexit__(None, None, None))
