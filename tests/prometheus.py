"""A real Prometheus that scrapes gateways of a test, with the rules of deploy/prometheus on a faster clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from tests.conftest import require_tool
from tests.ports import free_port

DEPLOY: Final = Path(__file__).parents[1] / "deploy" / "prometheus"
#: Minutes of the rules become seconds: what takes 5 minutes in production is seen in 5 seconds.
SCALE: Final = 60
SCRAPE_SECONDS: Final = 0.5
_START_SECONDS: Final = 15.0
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_DURATION: Final = re.compile(r"(?<=\[)(\d+)([smh])(?=\])|(?<=for: )(\d+)([smh])$", re.MULTILINE)


def speed_up(rules: str) -> str:
    """Return rules whose windows and pauses are shorter by SCALE."""

    def shorten(match: re.Match[str]) -> str:
        number, unit = match[1] or match[3], match[2] or match[4]
        return f"{int(number) * _UNITS[unit] * 1000 // SCALE}ms"

    return _DURATION.sub(shorten, rules)


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an instant query, each with `metric` and `value`."""
        async with self._session.post(f"{self._url}/api/v1/query", data={"query": expr}) as response:
            document = await response.json()
        assert document["status"] == "success", f"{expr}: {document['error']}"
        result: list[dict[str, Any]] = document["data"]["result"]
        return result

    async def wait_for(self, expr: str, count: int, seconds: float) -> None:
        """Wait until a query has this many series. Fails the test after `seconds`."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(found := await self.query(expr)) < count:  # noqa: ASYNC110 (it has no event to wait for)
                    await asyncio.sleep(SCRAPE_SECONDS / 2)
                return
        raise AssertionError(f"{expr}: {len(found)} of {count} series after {seconds:g} s: {found}")


@contextlib.asynccontextmanager
async def run_prometheus(directory: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """Run Prometheus with these targets, by `instance` their HOST:PORT, until all were scraped and beyond."""
    program = require_tool("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    for name in config["rule_files"]:
        (directory / name).write_text(speed_up((DEPLOY / name).read_text()))
    interval = f"{int(SCRAPE_SECONDS * 1000)}ms"
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [address], "labels": {"instance": name}} for name, address in targets.items()
    ]
    path = directory / "prometheus.json"
    path.write_text(json.dumps(config))
    port = free_port()
    arguments = (
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    )
    log = (directory / "prometheus.log").open("wb")
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}"
            await _wait_ready(session, url, process)
            prometheus = Prometheus(session, url)
            await prometheus.wait_for("up == 1", len(targets), _START_SECONDS)
            yield prometheus
    finally:
        log.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _wait_ready(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/-/ready") as response:
                    if response.ok:
                        return
            await asyncio.sleep(0.05)
    raise AssertionError("prometheus has ended: see prometheus.log in the directory of the test")
