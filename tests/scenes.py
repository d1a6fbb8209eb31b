"""What tests of invariant 9 share: a gateway that is scraped, a party that is held, legs that add up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import urllib.request
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.stats import Leg
from tests.peers import TIMEOUT_SECONDS, RunningGateway

#: How long a slow party is slow.
HELD_SECONDS = 0.05


def scrape(gateway: RunningGateway) -> dict[str, float]:
    """Return the seconds by leg of all routes, as /metrics shows them."""
    with urllib.request.urlopen(gateway.ops_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    seconds = dict.fromkeys(Leg, 0.0)
    for line in text.splitlines():
        if line.startswith("gateway_wait_seconds_total{"):
            seconds[Leg(line.split('leg="')[1].split('"')[0])] += float(line.rpartition(" ")[2])
    return {leg.value: value for leg, value in seconds.items()}


class Scene:
    """A gateway, and the scrapes of it: none shows less than the one before."""

    def __init__(self) -> None:
        self.gateway: RunningGateway
        self._scraping = asyncio.Lock()
        self._shown: dict[str, float] = dict.fromkeys((leg.value for leg in Leg), 0.0)

    async def hold(self, leg: Leg, *, beside: Collection[Leg] = ()) -> None:
        """Return once scrapes have shown that this leg was waited on for `HELD_SECONDS`, and no other meanwhile.

        `beside` are legs of other waits of the gateway under way.
        """
        async with asyncio.timeout(TIMEOUT_SECONDS):
            begun = shown = await self.scrape()
            while shown[leg] < begun[leg] + HELD_SECONDS:
                shown = await self.scrape()
                if any(shown[other] > begun[other] for other in Leg if other is not leg and other not in beside):
                    begun = shown

    async def scrape(self) -> dict[str, float]:
        """Scrape."""
        async with self._scraping:
            shown = await asyncio.to_thread(scrape, self.gateway)
            assert all(shown[leg] >= seconds for leg, seconds in self._shown.items()), (self._shown, shown)
            self._shown = shown
            return shown

    async def line(self, count: int = 1) -> dict[str, Any]:
        """Return a line of the access log whose legs add up."""
        line = await self.gateway.wait_log_line(count)
        assert_adds_up(line)
        return line


def assert_adds_up(line: dict[str, Any], *, may_overlap: bool = False) -> None:
    """Assert invariant 9 for an exchange."""
    charged, seconds = sum(line["wait_seconds"].values()), line["seconds"]
    allowed = max(0.001, seconds / 100)
    assert charged >= seconds - allowed, line
    assert may_overlap or charged <= seconds + allowed, line


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Let every call that opens or makes something in a directory block until the end of the block."""
    thawed = threading.Event()

    def freeze(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(path: Any, *rest: Any, **named: Any) -> Any:
            if os.fsdecode(path).startswith(str(directory)):
                thawed.wait(10)
            return call(path, *rest, **named)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", freeze(os.open))
        patch.setattr(os, "mkdir", freeze(os.mkdir))
        try:
            yield
        finally:
            thawed.set()
