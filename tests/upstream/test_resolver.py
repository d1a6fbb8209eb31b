"""Name lookups that take long, or fail: who waits, and for what."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import Fault, FaultKind
from gateway.threads import Threads
from gateway.upstream.resolver import Resolver, look_up_name
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    problem_of,
    responding,
    run_gateway,
    split_response,
    wait_until,
)


class Dns:
    """Answers that a test sets, and a gate in front of them."""

    def __init__(self) -> None:
        self.answer: list[tuple[int, str]] | OSError | Fault = [
            (socket.AF_INET, "192.0.2.1"),
            (socket.AF_INET, "192.0.2.2"),
        ]
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.now = 100.0
        self.threads = Threads("name", 4)
        self.resolver = Resolver(self.threads, self.look_up, lambda: self.now)

    def look_up(self, host: str, family: int) -> list[tuple[int, str]]:
        self.asked.append(host)
        assert self.open.wait(5)
        if not isinstance(self.answer, list):
            raise self.answer
        return self.answer

    async def addresses(self, host: str = "up.test") -> list[str]:
        return [result["host"] for result in await self.resolver.resolve(host, 80)]


@pytest.fixture
def dns() -> Iterator[Dns]:
    made = Dns()
    yield made
    made.open.set()
    made.threads.shutdown()


async def test_answer_is_used_again_and_spreads_over_the_addresses(dns: Dns) -> None:
    assert [await dns.addresses() for _ in range(3)] == [
        ["192.0.2.1", "192.0.2.2"],
        ["192.0.2.2", "192.0.2.1"],
        ["192.0.2.1", "192.0.2.2"],
    ]
    assert [result["port"] for result in await dns.resolver.resolve("up.test", 81)] == [81, 81]
    assert dns.asked == ["up.test"]
    dns.now += 11
    await dns.addresses()
    assert dns.asked == ["up.test", "up.test"]


async def test_requests_for_one_name_share_a_lookup_and_their_cancellation_does_not_end_it(dns: Dns) -> None:
    dns.open.clear()
    waiting = [asyncio.create_task(dns.addresses(), name="wait") for _ in range(50)]
    await wait_until(lambda: dns.asked)
    for task in waiting[:40]:
        task.cancel()
    await asyncio.wait(waiting[:40])
    dns.open.set()
    assert all("192.0.2.1" in found for found in await asyncio.gather(*waiting[40:]))
    assert dns.asked == ["up.test"]


async def test_stale_addresses_are_used_while_a_lookup_takes_long(dns: Dns) -> None:
    await dns.addresses()
    dns.now += 1000
    dns.open.clear()
    dns.answer = [(socket.AF_INET, "192.0.2.9")]
    assert set(await dns.addresses()) == {"192.0.2.1", "192.0.2.2"}
    assert set(await dns.addresses()) == {"192.0.2.1", "192.0.2.2"}
    assert dns.asked == ["up.test", "up.test"]
    dns.open.set()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await dns.addresses() != ["192.0.2.9"]:
            pass


async def test_fast_answer_replaces_stale_addresses_before_they_are_used(dns: Dns) -> None:
    await dns.addresses()
    dns.now += 11
    dns.answer = [(socket.AF_INET, "192.0.2.9")]
    assert await dns.addresses() == ["192.0.2.9"]


async def test_addresses_outlive_a_lookup_that_no_thread_could_be_started_for(dns: Dns) -> None:
    dns.answer = Fault(FaultKind.OUT_OF_THREADS, "none", reason="why", retry_after_seconds=1)
    raised = []
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            await dns.addresses()
        raised.append(caught.value)
    assert raised[0] is not raised[1], "each has a traceback of its own"
    assert [(each.detail, each.reason, each.retry_after_seconds) for each in raised] == [("none", "why", 1)] * 2
    dns.now += 2
    dns.answer, refusal = [(socket.AF_INET, "192.0.2.1")], dns.answer
    assert await dns.addresses() == ["192.0.2.1"]
    dns.now += 11
    dns.answer = refusal
    assert await dns.addresses() == ["192.0.2.1"]


async def test_addresses_outlive_a_dns_that_fails_but_not_for_ever(dns: Dns) -> None:
    await dns.addresses()
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    dns.now += 11
    assert len(await dns.addresses()) == 2
    assert len(await dns.addresses()) == 2
    assert len(dns.asked) == 2  # a lookup that failed is not repeated at once
    dns.now += 3600
    with pytest.raises(socket.gaierror):
        await dns.addresses()


async def test_name_that_does_not_exist_any_more_is_not_found_and_asked_again_after_a_second(dns: Dns) -> None:
    await dns.addresses()
    dns.answer = socket.gaierror(socket.EAI_NONAME, "no such name")
    dns.now += 11
    raised = []
    for _ in range(3):
        with pytest.raises(socket.gaierror) as info:
            await dns.addresses()
        raised.append(info.value)
    assert len(dns.asked) == 2
    assert len({id(exc) for exc in raised}) == 3
    dns.now += 1
    dns.answer = [(socket.AF_INET, "192.0.2.9")]
    assert await dns.addresses() == ["192.0.2.9"]


def test_real_name_has_numeric_addresses() -> None:
    assert (socket.AF_INET, "127.0.0.1") in look_up_name("localhost", socket.AF_UNSPEC)


@pytest.fixture
def stuck_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make lookups of names below `stuck.test` wait for the event."""
    may_answer = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **keys: Any) -> Any:
        if str(host).endswith("stuck.test"):
            may_answer.wait(5)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return real(host, *rest, **keys)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield may_answer
    may_answer.set()


async def test_sixty_stuck_names_delay_no_other_upstream(stuck_names: threading.Event) -> None:
    """Six did: all lookups, and everything else that blocks, had six threads together."""
    async with RawUpstream(responding(OK)) as upstream:
        endpoints = [f"http://{number}.stuck.test:80" for number in range(60)]
        limits = {"connect": "50ms"}
        settings = {
            "upstreams": {
                **{f"u{n}": {"endpoints": [url], "timeouts": limits} for n, url in enumerate(endpoints)},
                "up": {"endpoints": [f"http://localhost:{upstream.port}"]},
            },
            "routes": [
                *({"name": f"r{n}", "match": {"path": f"/{n}"}, "forward": {"upstream": f"u{n}"}} for n in range(60)),
                {"name": "r", "match": {"path": "/"}, "forward": {"upstream": "up"}},
            ],
        }  # fmt: skip
        async with run_gateway(settings) as gateway:
            get = "GET /{} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
            stuck = [gateway.request(get.format(number).encode()) for number in range(60)]
            for response in await asyncio.gather(*stuck):
                assert problem_of(response)["code"] == "connect_timeout"
            assert split_response(await gateway.request(get.format("").encode()))[0] == 200
            stuck_names.set()
