"""What every storage promises, see gateway/storage/interface.py: one suite for the directory and the bucket.

The bucket is a real S3 server's. Its client sends parts of 8 MiB, so that files of more become multipart uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest

from gateway.errors import Fault, FaultKind
from gateway.storage import IncomingFile, NameRules, StoredFile, StoredFileReader
from tests.leaks import open_descriptors
from tests.peers import wait_until
from tests.storage.places import Place

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
RENAME = NameRules()
BIG = os.urandom(9 * 2**20 + 1)
CHUNK_BYTES = 256 * 1024
IfExists = Literal["rename", "reject", "replace"]


async def write(file: IncomingFile, data: bytes, chunk_bytes: int = CHUNK_BYTES) -> None:
    for start in range(0, len(data), chunk_bytes):
        await file.write(data[start : start + chunk_bytes])
    await file.finish()


async def store(place: Place, *files: tuple[str, bytes], rules: NameRules = RENAME) -> list[StoredFile]:
    async with place.storage.open_upload(rules) as upload:
        for name, data in files:
            await write(await upload.begin(name), data)
        return await upload.commit()


async def read(reader: StoredFileReader) -> bytes:
    data = b""
    while chunk := await reader.read():
        data += chunk
    return data


async def fetch(place: Place, path: str, selected: tuple[int, int] | None = None) -> bytes:
    reader = await place.storage.open_file(path)
    try:
        if selected is not None:
            reader.select(*selected)
        return await read(reader)
    finally:
        await reader.close()


async def assert_nothing_is_left(place: Place) -> None:
    # What an upload that was cancelled has left to be done goes on by itself.
    await place.storage.close()
    assert await asyncio.to_thread(place.names) == []
    assert await asyncio.to_thread(place.unfinished) == 0


async def write_until_unfinished(place: Place, file: IncomingFile, name: str = "big") -> None:
    """Write until the storage itself holds the unfinished file."""
    await file.write(BIG)
    while not await asyncio.to_thread(place.unfinished, name):
        await file.write(BIG)


async def fail_commit(place: Place, name: str, rules: NameRules) -> None:
    """Commit two files, of which the second fails."""
    async with place.storage.open_upload(rules) as upload:
        await write(await upload.begin(name), b"new")
        await write_until_unfinished(place, last := await upload.begin("big"))
        await last.finish()
        await asyncio.to_thread(place.remove_unfinished, 1, "big")
        await upload.commit()


# --- Uploads.


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3_000_001, len(BIG)])
@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 70_001, len(BIG)])
async def test_file_is_stored_whole_with_its_size_and_digest(place: Place, size: int, chunk_bytes: int) -> None:
    data = BIG[:size]
    async with place.storage.open_upload(RENAME) as upload:
        await upload.check_room(size)
        await write(await upload.begin("a b.bin"), data, chunk_bytes)
        stored = await upload.commit()
    assert stored == [StoredFile("a b.bin", size, hashlib.sha256(data).hexdigest())]
    assert place.content("a b.bin") == data
    assert (place.names(), place.unfinished()) == (["a b.bin"], 0)


async def test_files_are_returned_in_the_order_they_began(place: Place) -> None:
    stored = await store(place, ("b", b"1"), ("c", BIG), ("a", b""))
    assert [(file.name, file.size) for file in stored] == [("b", 1), ("c", len(BIG)), ("a", 0)]
    assert place.names() == ["a", "b", "c"]


async def test_upload_of_unknown_size_has_room(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        await upload.check_room(None)


async def test_upload_without_files_stores_none(place: Place) -> None:
    assert await store(place) == []
    await assert_nothing_is_left(place)


async def test_no_file_is_visible_before_the_commit(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        for name, data in (("small", b"1"), ("empty", b""), ("big", BIG)):
            await write(await upload.begin(name), data)
            assert await asyncio.to_thread(place.names) == []
        await upload.commit()
    assert place.names() == ["big", "empty", "small"]


async def leave_nothing(place: Place) -> None:
    async with place.storage.open_upload(RENAME):
        pass


async def leave_finished(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        await write(await upload.begin("small"), b"1")
        await write(await upload.begin("big"), BIG)


async def leave_unfinished(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        await write(await upload.begin("small"), b"1")
        await write_until_unfinished(place, await upload.begin("big"))


async def leave_by_error(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        await write_until_unfinished(place, await upload.begin("big"))
        raise ZeroDivisionError


@pytest.mark.parametrize("leave", [leave_nothing, leave_finished, leave_unfinished, leave_by_error])
async def test_upload_left_without_a_commit_leaves_nothing(
    place: Place, leave: Callable[[Place], Awaitable[None]]
) -> None:
    with contextlib.suppress(ZeroDivisionError):
        await leave(place)
    await assert_nothing_is_left(place)


async def test_upload_cancelled_while_it_writes_leaves_nothing(place: Place) -> None:
    has_begun = asyncio.Event()

    async def upload_forever() -> None:
        async with place.storage.open_upload(RENAME) as upload:
            await write(await upload.begin("small"), b"1")
            file = await upload.begin("big")
            await write_until_unfinished(place, file)
            has_begun.set()
            while True:
                await file.write(BIG[:CHUNK_BYTES])

    task = asyncio.create_task(upload_forever())
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_nothing_is_left(place)


@pytest.mark.parametrize("is_visible", [False, True])
async def test_upload_cancelled_during_its_commit_is_stored_whole_or_not_at_all(place: Place, is_visible: bool) -> None:
    is_committing = asyncio.Event()

    async def upload_files() -> None:
        async with place.storage.open_upload(RENAME) as upload:
            await write(await upload.begin("a"), b"1")
            # The store still receives the last chunk when the commit begins.
            await write(await upload.begin("b"), BIG * 4, chunk_bytes=len(BIG) * 4)
            is_committing.set()
            await upload.commit()

    task = asyncio.create_task(upload_files())
    await is_committing.wait()
    while is_visible and not await asyncio.to_thread(place.names):
        pass
    task.cancel()
    await asyncio.wait([task])
    # What goes on by itself has ended.
    await place.storage.close()
    assert await asyncio.to_thread(place.names) in ([], ["a", "b"])
    assert await asyncio.to_thread(place.unfinished) == 0


async def test_upload_cancelled_twice_leaves_nothing(place: Place) -> None:
    has_begun = asyncio.Event()

    async def upload_without_end() -> None:
        async with place.storage.open_upload(RENAME) as upload:
            await write_until_unfinished(place, await upload.begin("big"))
            has_begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload_without_end())
    await has_begun.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=0)
    await asyncio.wait([task])
    # The second cancellation may end the wait for the removal, not the removal.
    while await asyncio.to_thread(place.unfinished):
        pass
    await assert_nothing_is_left(place)


@pytest.mark.slow
async def test_upload_cancelled_again_and_again_while_its_commit_fails_leaves_nothing(place: Place) -> None:
    """The third cancellation ended the wait for the commit: its exception was never retrieved."""
    task = asyncio.create_task(fail_commit(place, "small", RENAME))
    await wait_until(lambda: task.done() or any("commit" in each.get_name() for each in asyncio.all_tasks()))
    for _ in range(4):
        task.cancel()
        await asyncio.wait([task], timeout=0)
    await asyncio.wait([task])
    await assert_nothing_is_left(place)


@pytest.mark.slow
async def test_write_that_fails_is_a_fault_and_leaves_nothing(place: Place) -> None:
    async with place.storage.open_upload(RENAME) as upload:
        await write(await upload.begin("small"), b"1")
        file = await upload.begin("big")
        await write_until_unfinished(place, file)
        with place.failing_writes("big"), pytest.raises(Fault) as raised:
            await write(file, BIG * 8)
    assert raised.value.kind in {FaultKind.DISK_FULL, FaultKind.OBJECT_STORE_FAILED}
    await assert_nothing_is_left(place)


@pytest.mark.slow
async def test_commit_that_fails_stores_none_of_the_files(place: Place) -> None:
    with pytest.raises(Fault):
        await fail_commit(place, "small", RENAME)
    await assert_nothing_is_left(place)


# --- Names.


async def test_free_name_is_the_client_s_made_safe(place: Place) -> None:
    assert [file.name for file in await store(place, ("../../dir/a:b.txt", b"1"))] == ["a_b.txt"]
    assert place.names() == ["a_b.txt"]


async def test_uuid_names_keep_the_extension(place: Place) -> None:
    stored = await store(place, ("a.txt", b"1"), ("a.txt", b"2"), rules=NameRules(naming="uuid"))
    assert sorted(file.name for file in stored) == place.names()
    assert len(place.names()) == 2
    assert all(len(name) == 36 and name.endswith(".txt") for name in place.names())


async def test_taken_name_is_numbered_with_rename(place: Place) -> None:
    place.add("a.txt", b"old")
    stored = await store(place, ("a.txt", b"1"), ("a.txt", b"2"))
    assert [file.name for file in stored] == ["a-1.txt", "a-2.txt"]
    assert [place.content(name) for name in ("a.txt", "a-1.txt", "a-2.txt")] == [b"old", b"1", b"2"]


async def test_taken_name_is_a_fault_with_reject_and_the_upload_leaves_nothing(place: Place) -> None:
    place.add("a.txt", b"old")
    with pytest.raises(Fault) as raised:
        await store(place, ("b.txt", b"1"), ("a.txt", b"2"), rules=NameRules(if_exists="reject"))
    assert raised.value.kind is FaultKind.FILE_EXISTS
    assert (place.names(), place.content("a.txt"), place.unfinished()) == (["a.txt"], b"old", 0)


async def test_taken_name_is_replaced_with_replace(place: Place) -> None:
    place.add("a.txt", b"old")
    assert [file.name for file in await store(place, ("a.txt", b"1"), rules=NameRules(if_exists="replace"))] == [
        "a.txt"
    ]
    assert (place.names(), place.content("a.txt")) == (["a.txt"], b"1")


async def test_one_name_twice_in_an_upload_is_a_fault_with_reject(place: Place) -> None:
    with pytest.raises(Fault) as raised:
        await store(place, ("a.txt", b"1"), ("a.txt", b"2"), rules=NameRules(if_exists="reject"))
    assert raised.value.kind is FaultKind.FILE_EXISTS
    await assert_nothing_is_left(place)


async def test_one_name_twice_in_an_upload_is_refused_with_replace(place: Place) -> None:
    """Both were reported as stored, and one was there."""
    place.add("a.txt", b"old")
    with pytest.raises(Fault) as raised:
        await store(place, ("a.txt", b"1"), ("b", b"2"), ("a.txt", b"3"), rules=NameRules(if_exists="replace"))
    assert (raised.value.kind, raised.value.status) == (FaultKind.FILE_EXISTS, 409)
    assert (place.names(), place.unfinished(), place.content("a.txt")) == (["a.txt"], 0, b"old")


async def test_existing_files_are_replaced_by_all_files_of_an_upload(place: Place) -> None:
    for name in ("a", "b"):
        place.add(name, b"old")
    await store(place, ("a", b"1"), ("b", b"2"), ("c", b"3"), rules=NameRules(if_exists="replace"))
    assert (place.names(), place.unfinished()) == (["a", "b", "c"], 0)
    assert [place.content(name) for name in ("a", "b", "c")] == [b"1", b"2", b"3"]


@pytest.mark.slow
async def test_commit_that_fails_with_replace_loses_no_file_that_was_there(place: Place) -> None:
    """The bucket deleted the objects that had replaced others; the directory left the new file."""
    place.add("a.txt", b"old")
    with pytest.raises(Fault):
        await fail_commit(place, "a.txt", NameRules(if_exists="replace"))
    assert (place.names(), place.unfinished()) == (["a.txt"], 0)
    # A bucket keeps no object that was replaced.
    assert place.content("a.txt") in ((b"old",) if place.keeps_replaced else (b"old", b"new"))


# --- Reading.


@pytest.mark.parametrize("data", [b"", b"1", BIG], ids=["empty", "byte", "big"])
async def test_file_is_read_whole(place: Place, data: bytes) -> None:
    place.add("sub/a b.bin", data)
    assert await fetch(place, "sub/a%20b.bin") == data


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 0), (len(BIG) - 1, len(BIG) - 1), (0, len(BIG) - 1), (1, 2), (1_000_001, 3_000_002), (5, len(BIG) - 1)],
)
async def test_range_is_read_from_its_first_to_its_last_byte(place: Place, first: int, last: int) -> None:
    place.add("a", BIG)
    assert await fetch(place, "a", (first, last)) == BIG[first : last + 1]


async def test_reader_gives_the_size_and_validators_of_the_file(place: Place) -> None:
    seen = []
    for data in (b"1", b"22"):
        place.add("a", data)
        reader = await place.storage.open_file("a")
        seen.append(reader)
        await reader.close()
    assert [reader.size for reader in seen] == [1, 2]
    assert seen[0].etag != seen[1].etag
    assert all(reader.etag.startswith(b'"') and reader.etag.endswith(b'"') for reader in seen)
    assert 0 <= seen[1].modified_seconds - seen[0].modified_seconds < 60


async def test_reader_gives_one_version_of_a_file_or_fails(place: Place) -> None:
    await store(place, ("a", BIG))
    reader = await place.storage.open_file("a")
    await store(place, ("a", BIG[::-1]), rules=NameRules(if_exists="replace"))
    try:
        assert await read(reader) == BIG
    except Fault as fault:
        assert fault.kind is FaultKind.OBJECT_STORE_FAILED  # noqa: PT017 (either is right)
    finally:
        await reader.close()


@pytest.mark.parametrize(
    "path",
    [
        "missing",
        "",
        "/",
        ".",
        "sub",
        "sub/",
        "sub//b",
        "/sub/b",
        "%2fsub/b",
        "sub/b/",
        "sub/b%00",
        "../outside",
        "..%2foutside",
        "%2e%2e/outside",
        "sub/../../outside",
        "..%5coutside",
        "./sub/b",
        "%ff",
    ],
)
async def test_missing_file_and_path_out_of_the_storage_are_not_found(place: Place, path: str) -> None:
    place.add("sub/b", b"inside")
    place.add_outside("outside", b"secret")
    with pytest.raises(Fault) as raised:
        await place.storage.open_file(path)
    assert raised.value.kind is FaultKind.FILE_NOT_FOUND


@pytest.mark.parametrize("read_count", [0, 1])
async def test_reader_closed_in_the_middle_leaks_nothing(place: Place, read_count: int) -> None:
    place.add("a", BIG)
    assert await fetch(place, "a") == BIG  # opens what the client keeps, such as its connections
    gc.collect()
    before = len(open_descriptors())
    for _ in range(10):
        reader = await place.storage.open_file("a")
        for _ in range(read_count):
            assert await reader.read()
        await reader.close()
    await wait_until(lambda: len(open_descriptors()) <= before)


async def test_reader_closed_while_it_reads_leaks_nothing(place: Place) -> None:
    place.add("a", BIG)
    assert await fetch(place, "a") == BIG
    gc.collect()
    before = len(open_descriptors())
    reader = await place.storage.open_file("a")
    reading = asyncio.create_task(reader.read())
    await asyncio.wait([reading], timeout=0)
    reading.cancel()
    await asyncio.wait([reading])
    await reader.close()
    await wait_until(lambda: len(open_descriptors()) <= before)
