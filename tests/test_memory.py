"""Settings of glibc and the garbage collector: memory of freed chunks is kept and not faulted in again."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import subprocess
import sys
import weakref

import pytest

from gateway import garbage, memory
from tests.peers import wait_until

CHURN = """
import resource
from gateway import memory
memory.tune_memory()
pinned = [bytes(3 * 2**20)]

def churn():
    for size in (2**20, 2**20 - 7, 2**19) * 100:
        first, second, third = bytearray(size), bytearray(size + 1), bytearray(size)

churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns the memory")
def test_memory_of_freed_chunks_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    # Without tune_memory: 88,000. One chunk has 256 pages.
    assert int(done.stdout) < 256


def test_objects_of_the_start_are_excluded_from_garbage_collection() -> None:
    script = "from gateway import memory; import gc; before = gc.get_freeze_count(); memory.tune_memory()"
    script += "; print(gc.get_freeze_count() - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000


def test_garbage_is_collected_rarely_during_imports_and_as_usual_after_the_start() -> None:
    script = "from gateway import memory; import gc; print(gc.get_threshold()); memory.collect_rarely()"
    script += "; print(gc.get_threshold()[1] > 10); memory.tune_memory(); print(gc.get_threshold())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, is_rare, last = done.stdout.splitlines()
    assert (is_rare, last) == ("True", first)


@pytest.mark.parametrize("length", [0, 1, 1000, 2**20])
def test_room_is_truncated_to_what_was_received(length: int) -> None:
    data = os.urandom(length)
    room = memory.make_room(2**20)
    with room.getbuffer() as buffer:
        assert len(buffer) == 2**20
        buffer[:length] = data
    room.truncate(length)
    assert room.getvalue() == data


def test_rooms_do_not_share_their_bytes() -> None:
    rooms = [memory.make_room(10) for _ in range(2)]
    for room, byte in zip(rooms, b"ab", strict=True):
        with room.getbuffer() as buffer:
            buffer[:] = bytes([byte]) * 10
    assert [room.getvalue() for room in rooms] == [b"a" * 10, b"b" * 10]


@pytest.mark.parametrize("module", ["pydantic", "importlib.metadata", "importlib.resources", "zipfile", "certifi"])
def test_modules_that_take_memory_and_are_not_needed_to_serve_are_not_imported(module: str) -> None:
    script = f"import gateway.run, sys; print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


# A full collection with 1,000 transfers held the event loop for 75 ms.
@pytest.mark.parametrize("is_calm_in_time", [True, False])
async def test_garbage_is_looked_for_among_all_objects_in_calm_moments(
    monkeypatch: pytest.MonkeyPatch, is_calm_in_time: bool
) -> None:
    monkeypatch.setattr(garbage, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(garbage, "_MAX_LOOKS", 1000 if is_calm_in_time else 8)
    looks = 0

    def count_connections() -> int:
        nonlocal looks
        looks += 1
        # In the meantime as many collections as make the interpreter look at all objects.
        return 0 if is_calm_in_time and looks > 5 else 101

    node = Node()
    gc.collect()
    old = weakref.ref(node)
    del node
    task = asyncio.create_task(garbage.collect_when_calm(count_connections))
    await wait_until(lambda: gc.get_threshold()[2] > 1000)
    for _ in range(20):
        gc.collect(1)
    await wait_until(lambda: looks > 2)
    assert old() is not None
    await wait_until(lambda: old() is None)
    assert looks == (6 if is_calm_in_time else 8)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gc.get_threshold() == (700, 10, 10)
