"""Fixtures every test may use, and the checks that a test leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gateway.aiohttp_seam import make_loop
from gateway.express import lane
from tests.certificates import Certificate, make_certificate
from tests.leaks import ExpectedLog, LogRecords, check_nothing_left, open_descriptors
from tests.peers import DEFAULTS, IS_EXPRESS_FORCED, exchanges_by_lane
from tests.s3_server import S3Server, run_s3_server
from tests.slow_disk import SlowDisk

# How long an example takes says something about the machine only.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")


#: Whether what deploy/compile.py compiles is compiled here.
IS_COMPILED = lane.__file__.endswith(".so")


def pytest_configure(config: pytest.Config) -> None:
    """Let compiled modules use the signature of throw() that mypyc 2.4 calls: deprecated since Python 3.12."""
    if IS_COMPILED:
        config.addinivalue_line("filterwarnings", r"ignore:the \(type, exc, tb\) signature of throw:DeprecationWarning")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many exchanges took each lane, and in which form the gateway ran."""
    if IS_COMPILED:
        terminalreporter.write_line("the modules of deploy/compile.py are compiled")
    if exchanges_by_lane:
        lanes = ", ".join(f"{lane} {count}" for lane, count in exchanges_by_lane.most_common())
        terminalreporter.write_line(f"exchanges by the lane of their response: {lanes}")


def pytest_collection_finish() -> None:
    """Exclude what imports and collection allocated from garbage collection: it makes `gc.collect` 20 times faster."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Have tests run in the loop that the gateway runs in."""
    return {"loop": make_loop}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is about new connections where connections are kept from the start, and what replaces functions.

    A compiled module calls its own functions, whatever the attributes of the module are by now.
    """
    if IS_COMPILED and (marker := item.get_closest_marker("interpreted")) is not None:
        pytest.skip(f"compiled: {marker.kwargs['reason']}")
    if IS_EXPRESS_FORCED and (marker := item.get_closest_marker("new_connection")) is not None:
        pytest.skip(f"a connection is kept: {marker.kwargs['reason']}")


@pytest.fixture(autouse=True)
def no_unexpected_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs a warning or an error without the marker `expected_log(logger, pattern, reason=...)`."""
    with LogRecords() as logs:
        yield
        if inspect.iscoroutinefunction(request.function):
            # Only a task that is collected reports an exception that was never retrieved.
            gc.collect()
    markers = request.node.iter_markers("expected_log")
    unexpected = logs.unexpected(ExpectedLog(*marker.args, **marker.kwargs) for marker in markers)
    assert not unexpected, "unexpected log records:\n" + "\n".join(unexpected)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, no_unexpected_logs: None) -> None:
    """Check an async test for leaks, after the fixtures it asks for are torn down. A synchronous one is not checked."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_leaks_in_loop")


@pytest.fixture
async def no_leaks_in_loop() -> AsyncIterator[None]:
    """Fail a test that leaves a task or a descriptor."""
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    yield
    await check_nothing_left(tasks, descriptors)


@pytest.fixture(params=["auto", "copy"])
def every_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the copy lane, and on the lanes below the transports with bodies of any size."""
    lane: str = request.param
    monkeypatch.setitem(DEFAULTS, "lanes", lane)
    monkeypatch.setattr("gateway.transfer.lanes.MIN_RAW_BYTES", 1)
    return lane


@pytest.fixture
async def slow_disk(tmp_path: Path) -> AsyncIterator[SlowDisk]:
    """Give a test a file system whose calls it can hold back or make fail."""
    directory = tmp_path / "slow"
    directory.mkdir()
    disk = SlowDisk(directory)
    try:
        await disk.mount()
    except OSError as exc:
        pytest.skip(str(exc))
    yield disk
    await disk.unmount()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return a certificate that every gateway in this process trusts from now on."""
    require_tool("openssl")
    made = make_certificate(tmp_path_factory.mktemp("certificate"))
    made.trust()
    return made


@pytest.fixture(scope="session")
def running_s3_server() -> Iterator[S3Server]:
    """Run one server for all tests: it takes a while to start."""
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3_server(running_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Give a test an S3 server with one empty bucket, and the credentials for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    running_s3_server.ask("/bucket", "PUT")
    yield running_s3_server
    running_s3_server.ask("/moto-api/reset", "POST")


def require_tool(name: str) -> str:
    """Return the path of a program, or skip saying why; with CI=true its absence is a failure."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{name} is not installed: `make tools` as root installs it on Debian"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
