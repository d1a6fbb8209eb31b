"""Filters on every action with files: what they observe, what they refuse, and that no refused body looks complete."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import math
import os
import random
import sys
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.config import parse_config
from gateway.errors import Fault, FaultKind
from gateway.filters import FileHead, FilterContext, FilterProblem, Observer, make_filters
from gateway.filters.coding import STEP_MEMBERS, DecompressFactory
from gateway.filters.testing import run_filter
from gateway.filters.throttle import Bucket, ThrottleFactory
from gateway.http.headers import Header
from gateway.observe.stats import Direction, Leg
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489") + b"\0" * 100
DATA = os.urandom(700_000)
FILE = 'name="f"; filename="a.bin"'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_header(data: bytes, algorithm: str = "sha-256") -> str:
    name = algorithm.replace("-", "")
    return f"{algorithm}=:{base64.b64encode(hashlib.new(name, data).digest()).decode()}:"


async def drain_request(wire: Wire) -> None:
    """Read the request to its end."""
    await wire.read_head()
    await wire.read_to_end()


def with_part_header(body: bytes, field: str) -> bytes:
    """Add a header to the file part of a form."""
    return body.replace(b"Content-Type: application/octet-stream", field.encode(), 1)


def split_config(upstream: str, filters: list[Any], **keys: Any) -> dict[str, Any]:
    return {
        "upstreams": {"up": {"endpoints": [upstream]}},
        "routes": [
            {
                "name": "r",
                "match": {"prefix": "/"},
                "split": {"upstream": "up", "body": "raw", **keys},
                "filters": filters,
            }
        ],
    }


def store_config(directory: Path, filters: list[Any]) -> dict[str, Any]:
    action = {"directory": str(directory)}
    return {"routes": [{"name": "r", "match": {"prefix": "/"}, "store": action, "filters": filters}]}


@pytest.mark.parametrize("kind", ["form", "raw", "chunked"])
async def test_digest_is_reported_in_the_response_and_the_log(kind: str) -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, filters=["digest"])) as gateway:
            body = DATA if kind == "raw" else form((FILE, DATA), ('name="x"', b"1"))
            request = post(body, content_type="application/x-raw" if kind == "raw" else "")
            if kind == "chunked":
                head = request.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
                request = head + chunked(body[:100_000], body[100_000:])
            status, headers, _ = split_response(await gateway.request(request))
            assert (status, seen) == (200, [body])
            assert headers["x-upload-digest"] == digest_header(DATA)
            line = await gateway.wait_log_line()
            files = [part for part in line["parts"] if part["kind"] == "file"]
            assert [(part["sha256"], part["size"]) for part in files] == [(sha256(DATA), len(DATA))]
            assert set(line["wait_seconds"]) >= {"filter", "downstream_read", "upstream_write"}
            assert gateway.stats.routes["r"].waits[Leg.FILTER] > 0


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("kind", ["form", "raw"])
async def test_matching_digest_passes_and_a_wrong_one_is_cut_before_the_end(kind: str, algorithm: str) -> None:
    async with RawUpstream(responding(OK)) as good, RawUpstream(drain_request) as bad:
        for upstream, data in ((good, DATA), (bad, DATA[:-1] + bytes([DATA[-1] ^ 1]))):
            async with run_gateway(forward_config(upstream.url, filters=["digest"])) as gateway:
                field = f"Content-Digest: {digest_header(DATA, algorithm)}"
                if kind == "form":
                    request = post(with_part_header(form((FILE, data)), field))
                else:
                    request = post(data, content_type="x/y", headers=field + "\r\n")
                response = await gateway.request(request)
                if upstream is good:
                    assert split_response(response)[0] == 200
                    continue
                problem = problem_of(response)
                assert (problem["status"], problem["code"]) == (422, "digest_mismatch")
                assert problem["expected"] != problem["received"]
                await bad.wait_finished()
                assert len(bad.received.partition(b"\r\n\r\n")[2]) < len(request.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("action", ["forward", "remade", "split", "store"])
@pytest.mark.parametrize("is_right", [True, False])
async def test_digest_of_a_whole_form_is_verified(action: str, is_right: bool, tmp_path: Path) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            finished.append((await read_request(wire))[1])
            await wire.send(OK)

    body = form((FILE, DATA), ('name="x"', b"1"))
    async with RawUpstream(script) as upstream:
        configs = {
            "forward": forward_config(upstream.url, filters=["digest"]),
            "remade": forward_config(upstream.url, filters=["digest"], forward={"multipart": "strict"}),
            "split": split_config(upstream.url, ["digest"]),
            "store": store_config(tmp_path, ["digest"]),
        }
        async with run_gateway(configs[action]) as gateway:
            headers = f"Content-Digest: {digest_header(body if is_right else DATA)}\r\n"
            response = await gateway.request(post(body, headers=headers))
            if is_right:
                assert split_response(response)[0] in (200, 201)
                return
            problem = problem_of(response)
            assert (problem["status"], problem["code"]) == (422, "digest_mismatch")
            assert "the body" in problem["detail"]
            assert not os.listdir(tmp_path)
            # Each file of a split has its own request: those that ended before the form's end are complete.
            assert len(finished) <= (1 if action == "split" else 0)


@pytest.mark.parametrize("kind", ["raw", "part", "form"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_every_digest_header_is_verified(kind: str, order: tuple[int, int]) -> None:
    body = form((FILE, DATA)) if kind == "form" else DATA
    both = (digest_header(body), digest_header(b"other", "sha-512"))
    headers = "\r\n".join(f"Content-Digest: {both[index]}" for index in order)
    if kind == "part":
        request = post(with_part_header(form((FILE, DATA)), headers))
    else:
        request = post(body, content_type="x/y" if kind == "raw" else "", headers=headers + "\r\n")
    async with RawUpstream(drain_request) as upstream:
        async with run_gateway(forward_config(upstream.url, filters=["digest"])) as gateway:
            assert problem_of(await gateway.request(request))["code"] == "digest_mismatch"


async def test_malformed_digest_is_400() -> None:
    async with RawUpstream(drain_request) as upstream:
        async with run_gateway(forward_config(upstream.url, filters=["digest"])) as gateway:
            request = post(b"x", content_type="x/y", headers="Content-Digest: sha-256=abc\r\n")
            assert problem_of(await gateway.request(request))["code"] == "bad_digest"


async def test_blake3_digest_is_reported() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(split_config(upstream.url, [{"digest": {"algorithm": "blake3"}}])) as gateway:
            status, _, text = split_response(await gateway.request(post(form((FILE, b"abc")))))
    # The digest of "abc", as b3sum prints it.
    expected = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert (status, json.loads(text)["parts"][0]["blake3"]) == (200, expected)


def test_missing_package_of_a_digest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    config = parse_config(json.dumps(split_config("http://127.0.0.1:1", [{"digest": {"algorithm": "blake3"}}])))
    with pytest.raises(FilterProblem, match=r"digest needs a package that is missing: pip install blake3"):
        make_filters(config.routes[0], FilterContext("r", ThreadPoolExecutor(1)))


async def test_digests_are_reported_per_file_and_a_wrong_one_fails_only_its_file() -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            finished.append((await read_request(wire))[1])
            await wire.send(OK)

    async with RawUpstream(script) as upstream:
        async with run_gateway(split_config(upstream.url, [{"digest": {"algorithm": "crc32c"}}])) as gateway:
            body = form((FILE, b"123456789"), (FILE, DATA), (FILE, b"three"))
            wrong = f"Repr-Digest: {digest_header(b'other')}"
            at = body.index(b"\r\n\r\n123456789") + 1
            body = body[:at] + with_part_header(body[at:], wrong)
            status, _, text = split_response(await gateway.request(post(body)))
            parts = json.loads(text)["parts"]
            assert [part["status"] for part in parts] == [200, 422, 200]
            # The check value of CRC-32C (RFC 3720 appendix B.4 and every catalogue).
            assert (status, parts[0]["crc32c"]) == (207, "e3069283")
            assert parts[1]["error"]["code"] == "digest_mismatch"
            assert finished == [b"123456789", b"three"]


async def test_digest_of_stored_files_is_verified(tmp_path: Path) -> None:
    async with run_gateway(store_config(tmp_path, [{"digest": {"algorithm": "md5"}}])) as gateway:
        status, _, text = split_response(await gateway.request(post(form((FILE, DATA)))))
        described = json.loads(text)["files"][0]
        assert (status, described["md5"]) == (201, hashlib.md5(DATA).hexdigest())
        wrong = with_part_header(form((FILE, DATA)), f"Content-Digest: {digest_header(b'other')}")
        assert problem_of(await gateway.request(post(wrong)))["code"] == "digest_mismatch"
        assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.new_connection(reason="no connection may be opened")
@pytest.mark.parametrize(
    ("data", "status", "found"),
    [
        (PNG, 200, "image/png"),
        (b"%PDF-1.7\n" + b"x" * 200_000, 415, "application/pdf"),
        (b"plain text\n" * 10, 415, "text/plain"),
        (bytes(range(200, 210)), 415, "application/octet-stream"),
        (b"", 415, "text/plain"),
    ],
)
async def test_type_is_checked_before_a_request_is_sent_upstream(data: bytes, status: int, found: str) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        filters = [{"sniff": {"allow": ["image/*"]}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            request = post(form(('name="note"', b"hi"), ('name="f"; filename="a.png"', data)))
            response = await gateway.request(request)
            assert split_response(response)[0] == status
            if status == 200:
                assert upstream.received.endswith(request.partition(b"\r\n\r\n")[2])
                assert (await gateway.wait_log_line())["parts"][-1]["sniffed"] == found
            else:
                problem = problem_of(response)
                assert (problem["code"], problem["sniffed"]) == ("type_not_allowed", found)
                assert not upstream.wires


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_type_is_decided_within_64_kib_before_the_client_sends_the_rest() -> None:
    async with RawUpstream(drain_request) as upstream:
        filters = [{"sniff": {"allow": ["image/*"]}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            client = await gateway.connect()
            request = post(form((FILE, b"%PDF-1.7\n" + b"x" * 500_000)))
            await client.send(request[:70_000])
            assert problem_of(await client.read_to_end())["code"] == "type_not_allowed"
            await client.close()
            assert not upstream.wires


@pytest.mark.new_connection(reason="no connection may be opened")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([('name="a"', b"x" * 60), ('name="b"', b"y" * 60)], id="several fields"),
        pytest.param([('name="a"', b"x" * 200)], id="one field"),
        pytest.param([(f'name="{name}{"x" * 40}"', b"") for name in "abcd"], id="heads"),
    ],
)
@pytest.mark.parametrize("multipart", ["inspect", "strict"])
async def test_form_held_for_the_type_of_its_file_is_bounded(parts: list[tuple[str, bytes]], multipart: str) -> None:
    """Every field before the first file was held: 20 clients made it 1.2 GiB."""
    async with RawUpstream(responding(OK)) as upstream:
        keys: dict[str, Any] = {"filters": [{"sniff": {"allow": ["image/*"]}}], "limits": {"max_held": 100}}
        keys["forward"] = {"multipart": multipart}
        async with run_gateway(forward_config(upstream.url, **keys)) as gateway:
            client = await gateway.connect()
            # Without its end: the file may follow.
            await client.send(
                post(form(*parts, (FILE, PNG))).partition(b"Content-Disposition: form-data; " + FILE.encode())[0]
            )
            problem = problem_of(await client.read_to_end())
            assert (problem["status"], problem["config_key"]) == (413, "routes.r.limits.max_held")
            assert not upstream.wires
            await client.close()


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_file_longer_than_what_may_be_held_is_not_refused_for_it() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        keys = {"filters": [{"sniff": {"allow": ["image/*"]}}], "limits": {"max_held": 150}}
        async with run_gateway(forward_config(upstream.url, **keys)) as gateway:
            client = await gateway.connect()
            request = post(form((FILE, PNG + bytes(100_000))))
            for at in range(0, len(request), 10_000):
                await client.send(request[at : at + 10_000])
            assert split_response(await client.read_to_end())[0] == 200
            await client.close()


async def test_later_file_of_another_type_cuts_the_upstream() -> None:
    async with RawUpstream(drain_request) as upstream:
        filters = [{"sniff": {"allow": ["image/*"]}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            body = form((FILE, PNG + b"x" * 1_000_000), (FILE, b"%PDF-1.7\n"))
            assert problem_of(await gateway.request(post(body)))["code"] == "type_not_allowed"
            await upstream.wait_finished()
            assert b"%PDF" not in upstream.received


async def test_100_continue_is_sent_before_the_type_is_decided() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        filters = [{"sniff": {"allow": ["image/png"]}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            client = await gateway.connect()
            head, _, body = post(form((FILE, PNG)), headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            assert b"100 Continue" in await client.read_head()
            await client.send(body)
            assert split_response(await client.read_to_end())[0] == 200
            await client.close()


async def test_sniffed_files_of_a_split_fail_alone(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        filters = [{"sniff": {"allow": ["image/*"]}}, "digest"]
        async with run_gateway(split_config(upstream.url, filters)) as gateway:
            body = form((FILE, PNG), (FILE, b"text" * 50_000), (FILE, PNG))
            parts = json.loads(split_response(await gateway.request(post(body)))[2])["parts"]
            assert [part["status"] for part in parts] == [200, 415, 200]
            assert parts[2]["sha256"] == sha256(PNG)


@pytest.mark.parametrize("per", ["route", "client"])
async def test_throttle_delays_files_without_blame(per: str) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        filters = [{"throttle": {"rate": "2MB/s", "per": per}}]
        keys = {"idle": "50ms", "min_rate": "5MB/s", "grace": "50ms"}
        async with run_gateway(forward_config(upstream.url, filters=filters, timeouts=keys)) as gateway:
            assert split_response(await gateway.request(post(form((FILE, DATA)))))[0] == 200
            line = await gateway.wait_log_line()
            assert line["wait_seconds"]["filter"] > line["wait_seconds"]["downstream_read"]
            assert line["outcome"] == "complete"


def test_bucket_grants_as_the_rate_allows() -> None:
    bucket = Bucket(1000.0)
    # A burst of 0.25 s at once; then the rate, in the order of the calls; unused rate is not saved.
    for size, now, seconds in (
        (250, 100.0, 0),
        (1000, 100.0, 1.0),
        (500, 100.5, 1.0),
        (250, 200.0, 0),
        (250, 200, 0.25),
    ):
        bucket.empty_at = bucket.grants_at(size, now)
        assert bucket.empty_at - now == pytest.approx(seconds)


async def test_bytes_of_a_client_that_leaves_a_throttle_are_not_charged() -> None:
    """Its debt remained: a file of 5 bytes waited 11.4 s for what clients that were gone had sent."""
    bucket = Bucket(1000.0)
    waits = []
    for size in (10**6, 10**6, 5, 10**6):
        waits.append(asyncio.create_task(bucket.take(size)))
        await asyncio.sleep(0)
    waits[1].cancel()
    await asyncio.sleep(0)
    assert not waits[2].done()
    waits[0].cancel()
    await asyncio.wait_for(waits[2], TIMEOUT_SECONDS)
    assert not waits[3].done()
    assert bucket.empty_at < time.monotonic()
    waits[3].cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert bucket.is_idle(time.monotonic())


async def test_requests_that_wait_for_a_throttle_are_granted_in_order() -> None:
    bucket = Bucket(1e6)
    granted = []

    async def take(number: int) -> None:
        await bucket.take(250_000 if not number else 1000)
        granted.append(number)

    await asyncio.gather(*(take(number) for number in range(10)))
    assert granted == list(range(10))
    await bucket.take(0)


async def test_upload_does_not_wait_for_clients_that_left_a_throttle() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        filters = [{"throttle": {"rate": "1KB/s"}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            client = await gateway.connect()
            await client.send(post(b"x" * 60_000, content_type="application/octet-stream"))
            await wait_until(lambda: gateway.stats.routes["r"].transfers[Direction.UPLOAD].in_flight)
            client.reset()
            await gateway.wait_log_line()
            response = await gateway.request(post(b"hello", content_type="application/octet-stream"))
            assert split_response(response)[0] == 200


async def test_buckets_of_idle_clients_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.filters.throttle._MAX_CLIENTS", 2)
    kind = ThrottleFactory(1e9, "client")
    for number in range(10):
        kind(FileHead(1, "f", "a", None, None, client=str(number)))
    assert len(kind._rates) <= 2


class SparseFactory:
    """A transform that has nothing for some chunks."""

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield b""
            yield chunk


async def test_empty_chunk_of_a_transform_is_not_the_end_of_the_file() -> None:
    """The rest of the file was dropped, and what came before it looked whole."""
    assert (await run_filter(SparseFactory(), [b"first", b"second"])).data == b"firstsecond"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_files_are_compressed_before_they_are_stored(coding: str, tmp_path: Path) -> None:
    data = b"the same again and again " * 50_000
    async with run_gateway(store_config(tmp_path, ["digest", {"compress": {"coding": coding}}])) as gateway:
        described = json.loads(split_response(await gateway.request(post(form((FILE, data)))))[2])["files"][0]
        stored = (tmp_path / "a.bin").read_bytes()
        assert (gzip.decompress(stored) if coding == "gzip" else zlib.decompress(stored)) == data
        assert len(stored) == described["size"] < len(data) / 20
        # The digest filter is first, so its digest is of the client's bytes; store's is of the bytes on disk.
        assert described["sha256"] == sha256(stored)


@pytest.mark.parametrize("made", [gzip.compress, zlib.compress, lambda data: gzip.compress(data[:9]) * 3])
async def test_files_are_decompressed_while_they_are_streamed(made: Any, tmp_path: Path) -> None:
    data = os.urandom(1000) * 3000
    packed = made(data)
    expected = data if len(packed) > 200 else data[:9] * 3
    async with run_gateway(store_config(tmp_path, ["decompress"])) as gateway:
        assert split_response(await gateway.request(post(form((FILE, packed)))))[0] == 201
        assert (tmp_path / "a.bin").read_bytes() == expected


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (gzip.compress(b"\0" * 5_000_000), "body_too_large"),
        (b"no gzip", "bad_coding"),
        (gzip.compress(DATA)[:-9], "bad_coding"),
        (b"", "bad_coding"),
    ],
)
async def test_decompression_bombs_and_malformed_data_leave_no_file(packed: bytes, code: str, tmp_path: Path) -> None:
    async with run_gateway(store_config(tmp_path, [{"decompress": {"max_bytes": "1MB"}}])) as gateway:
        assert problem_of(await gateway.request(post(form((FILE, packed)))))["code"] == code
        assert not os.listdir(tmp_path)


class CountingExecutor(ThreadPoolExecutor):
    """Counts the calls it runs."""

    count = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return super().submit(*args, **kwargs)


async def test_a_step_decompresses_many_empty_members() -> None:
    """Each cost a change of threads and a copy of the rest of its chunk."""
    member_count = 20 * STEP_MEMBERS
    packed = gzip.compress(b"") * member_count + gzip.compress(DATA)
    with CountingExecutor() as threads:
        factory = DecompressFactory(math.inf, FilterContext("r", threads))
        output = await run_filter(factory, [packed[at : at + 2**16] for at in range(0, len(packed), 2**16)])
        assert output.data == DATA
        assert member_count / STEP_MEMBERS < threads.count < 2 * member_count / STEP_MEMBERS


class FailingFactory:
    """A plug-in that raises at a byte, or at the end."""

    first_bytes = 0

    def __init__(self, at: int, *, has_bug: bool) -> None:
        self._at = at
        self.has_bug = has_bug
        self.closed: list[bool] = []

    def __call__(self, file: FileHead) -> Observer:
        return _Failing(self, self._at)


class _Failing:
    def __init__(self, factory: FailingFactory, at: int) -> None:
        self._factory = factory
        self._remaining = at

    async def feed_data(self, chunk: bytes) -> None:
        self._remaining -= len(chunk)
        if self._remaining < 0:
            if self._factory.has_bug:
                raise ZeroDivisionError("a bug in the plug-in")
            raise Fault(FaultKind.TYPE_NOT_ALLOWED, "Not this one.")

    async def finish(self) -> None:
        if not self._remaining:
            raise Fault(FaultKind.TYPE_NOT_ALLOWED, "Not at the end.")

    def close(self) -> None:
        self._factory.closed.append(True)

    def facts(self) -> Mapping[str, str | int]:
        return {}

    def response_headers(self) -> Sequence[Header]:
        return ()


class UppercaseFactory:
    """A plug-in that changes bytes."""

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Register plug-ins as entry points, as an installed package does."""
    created: dict[str, Any] = {}

    class PluginEntryPoint:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            def make(options: Mapping[str, Any], context: FilterContext) -> Any:
                assert context.route == "r"
                if self.name == "uppercase":
                    return UppercaseFactory()
                if "at" not in options:
                    raise ValueError("at is missing: give the byte")
                created["factory"] = FailingFactory(options["at"], has_bug=options.get("bug", False))
                return created["factory"]

            return make

    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [PluginEntryPoint("failing"), PluginEntryPoint("uppercase")],
    )
    return created


def config_of(action: str, upstream: str, filters: list[Any], directory: Path) -> dict[str, Any]:
    return {
        "form": forward_config(upstream, filters=filters),
        "raw": forward_config(upstream, filters=filters),
        "split": split_config(upstream, filters),
        "store": store_config(directory, filters),
    }[action]


@pytest.mark.parametrize("at", [0, 1, *(random.Random(7).randrange(len(DATA)) for _ in range(4)), len(DATA)])
@pytest.mark.parametrize("action", ["form", "raw", "split", "store"])
async def test_fault_of_a_filter_at_any_byte_leaves_nothing_that_looks_complete(
    at: int, action: str, plugin: dict[str, Any], tmp_path: Path
) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        finished.append((await read_request(wire))[1])
        await wire.send(OK)

    filters = [{"failing": {"at": at}}]
    async with RawUpstream(script) as upstream:
        async with run_gateway(config_of(action, upstream.url, filters, tmp_path)) as gateway:
            request = post(DATA, content_type="x/y") if action == "raw" else post(form((FILE, DATA)))
            status, _, text = split_response(await gateway.request(request))
            if action == "split":
                assert json.loads(text)["parts"][0]["status"] == 415
            else:
                assert (status, json.loads(text)["code"]) == (415, "type_not_allowed")
            assert not finished
            assert not os.listdir(tmp_path)
            assert plugin["factory"].closed == [True]


@pytest.mark.expected_log("gateway", "bug in exchange", reason="a filter's bug is logged with its traceback")
@pytest.mark.expected_log("asyncio", "bug while a body was sent", reason="the bug surfaces in the task that sends")
@pytest.mark.parametrize("action", ["form", "raw", "split", "store"])
async def test_bug_in_a_plugin_is_500_and_leaves_nothing_that_looks_complete(
    action: str, plugin: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        finished.append((await read_request(wire))[1])
        await wire.send(OK)

    filters = [{"failing": {"at": 300_000, "bug": True}}]
    async with RawUpstream(script) as upstream:
        async with run_gateway(config_of(action, upstream.url, filters, tmp_path)) as gateway:
            request = post(DATA, content_type="x/y") if action == "raw" else post(form((FILE, DATA)))
            status, _, text = split_response(await gateway.request(request))
            if action == "split":
                assert json.loads(text)["parts"][0]["error"]["code"] == "bug"
            else:
                line = await gateway.wait_log_line()
                assert (status, json.loads(text)["code"], line["blame"]) == (500, "bug", "gateway")
            assert not finished
            assert not os.listdir(tmp_path)
            assert plugin["factory"].closed == [True]
    assert "a bug in the plug-in" in caplog.text


@pytest.mark.parametrize("action", ["split", "store"])
async def test_transform_plugin_changes_the_bytes_sent_on(action: str, plugin: dict[str, Any], tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        configs = {"split": split_config(upstream.url, ["uppercase"]), "store": store_config(tmp_path, ["uppercase"])}
        async with run_gateway(configs[action]) as gateway:
            assert split_response(await gateway.request(post(form((FILE, b"quiet")))))[0] in (200, 201)
            assert (seen or [(tmp_path / "a.bin").read_bytes()]) == [b"QUIET"]


async def test_client_that_closes_while_a_filter_waits_ends_the_exchange(plugin: dict[str, Any]) -> None:
    async with RawUpstream(drain_request) as upstream:
        filters = [{"failing": {"at": 10**9}}, {"throttle": {"rate": "200KB/s"}}]
        async with run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
            client = await gateway.connect()
            await client.send_all([post(form((FILE, DATA)))[:100_000]])
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            client.reset()
            assert (await gateway.wait_log_line())["outcome"] == "client_left"
            assert plugin["factory"].closed == [True]
