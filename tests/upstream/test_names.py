"""Names that hang or flap: the exchanges that need them fail, and no others."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    forward_config,
    problem_of,
    responding,
    run_gateway,
    split_response,
)

HANGING = b"GET /hanging HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
OTHER = b"GET /other HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


class Names:
    """Stands for getaddrinfo(3): one name hangs, fails or resolves."""

    def __init__(self) -> None:
        self._getaddrinfo = socket.getaddrinfo
        self.released = threading.Event()
        #: What happens at each further look-up: whether the name resolves.
        self.results: Iterator[bool] = itertools.repeat(True)

    def __call__(self, host: Any, *rest: Any, **named: Any) -> Any:
        if host != "hanging.example":
            return self._getaddrinfo(host, *rest, **named)
        self.released.wait(10)
        if not next(self.results):
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        return self._getaddrinfo("127.0.0.1", *rest, **named)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.released.set()


def config(url: str) -> dict[str, Any]:
    timeouts = {"timeouts": {"connect": "300ms"}}
    made = forward_config(
        url.replace("127.0.0.1", "hanging.example"), match={"prefix": "/hanging"}, upstream_keys=timeouts
    )
    made["upstreams"]["other"] = {"endpoints": [url.replace("127.0.0.1", "localhost")]}
    made["routes"].append({"name": "other", "match": {"prefix": "/other"}, "forward": {"upstream": "other"}})
    return made


@pytest.mark.slow
async def test_name_that_hangs_stops_no_other_upstream_and_is_used_once_it_resolves(names: Names) -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url)) as gateway:
        hanging = [gateway.request(HANGING) for _ in range(30)]
        others = [gateway.request(OTHER) for _ in range(10)]
        responses = await asyncio.gather(*hanging, *others)
        assert {problem_of(response)["status"] for response in responses[:30]} == {504}
        assert all(response.endswith(b"ok") for response in responses[30:])
        names.released.set()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while split_response(await gateway.request(HANGING))[0] != 200:
                pass


async def test_name_that_flaps_keeps_the_address_it_had(names: Names) -> None:
    names.released.set()
    names.results = itertools.cycle([True, False, False])
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url)) as gateway:
        assert [split_response(await gateway.request(HANGING))[0] for _ in range(20)] == [200] * 20
