"""Every test of the suite runs on both storages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.storage import DiskThreads
from gateway.threads import Threads
from tests.clock import Clock
from tests.s3_server import S3Server
from tests.storage.places import BucketPlace, DirectoryPlace, Place


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk_threads() -> Iterator[DiskThreads]:
    """Give a test threads that are joined at its end."""
    threads = Threads("disk", 8)
    yield DiskThreads(threads, 60.0, 60.0)
    threads.shutdown()


@pytest.fixture(scope="session", autouse=True)
def s3_server_runs_first(running_s3_server: S3Server) -> None:
    """Start the server before a test: the socket it listens on is not a leak of the test that asks for it first."""


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, disk_threads: DiskThreads) -> Place:
    """Give a test each storage in turn, empty."""
    if request.param == "bucket":
        server: S3Server = request.getfixturevalue("s3_server")
        return BucketPlace(server, disk_threads)
    directory = tmp_path / "in"
    directory.mkdir()
    return DirectoryPlace(directory, disk_threads)
