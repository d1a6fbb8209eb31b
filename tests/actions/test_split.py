"""split: one upstream request per file, in order, complete or cut; the response lists the result of each file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.downstream.parts import FileEnd, worse_file
from gateway.errors import Blame, Outcome
from tests.peers import (
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    chunked,
    form,
    post,
    problem_of,
    read_request,
    run_gateway,
    split_response,
)


def config(*endpoints: str, **route: Any) -> dict[str, Any]:
    upstream_keys = route.pop("upstream_keys", {})
    split = {"upstream": "up", **route.pop("split", {})}
    return {
        "upstreams": {"up": {"endpoints": list(endpoints), **upstream_keys}},
        "routes": [{"name": "s", "match": {"path": "/split"}, "split": split, **route}],
    }


def response(status: int, body: bytes, kind: bytes = b"text/plain") -> bytes:
    head = b"HTTP/1.1 %d Whatever\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


class RecordingScript:
    """A script that records each request and responds, by default with the SHA-256 of the body."""

    def __init__(self, reply: Callable[[bytes, bytes], bytes] | None = None) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self._reply = reply or (lambda _head, body: response(200, hashlib.sha256(body).hexdigest().encode()))

    async def __call__(self, wire: Wire) -> None:
        while True:
            head, body = await read_request(wire)
            self.requests.append((head, body))
            await wire.send(self._reply(head, body))

    @property
    def lines(self) -> list[bytes]:
        return [head.split(b"\r\n")[0] for head, _ in self.requests]


def file(name: str, data: bytes, filename: str | None = None) -> tuple[str, bytes]:
    return f'name="{name}"; filename="{filename or name}"', data


def request(body: bytes, **more: Any) -> bytes:
    return post(body, target="/split", **more)


def parts_of(raw: bytes, status: int) -> list[dict[str, Any]]:
    got, headers, body = split_response(raw)
    assert (got, headers["content-type"]) == (status, "application/json"), raw
    parts: list[dict[str, Any]] = json.loads(body)["parts"]
    return parts


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_one_failed_file_leaves_the_others_complete_and_in_order() -> None:
    files = [os.urandom(300_000), os.urandom(200_001), os.urandom(100)]

    def reply(head: bytes, body: bytes) -> bytes:
        return response(500, b"no") if body == files[1] else response(200, sha256(body).encode())

    recorded = [RecordingScript(reply) for _ in range(3)]
    async with RawUpstream(recorded[0]) as a, RawUpstream(recorded[1]) as b, RawUpstream(recorded[2]) as c:
        async with run_gateway(config(a.url, b.url, c.url, split={"body": "raw"})) as gateway:
            body = form(*(file(f"f{number}", data) for number, data in enumerate(files)))
            parts = parts_of(await gateway.request(request(body)), 207)
            assert [part["status"] for part in parts] == [200, 500, 200]
            assert (parts[0]["body"], parts[2]["body"]) == (sha256(files[0]), sha256(files[2]))
            assert [len(each.requests) for each in recorded] == [1, 1, 1]
            line = await gateway.wait_log_line()
            assert [part["outcome"] for part in line["parts"]] == ["complete", "upstream_failed", "complete"]
            assert (line["status"], line["outcome"], line["upload"]) == (207, "upstream_failed", "complete")
            assert line["blame"] == "upstream"


async def test_raw_files_are_sent_with_type_name_and_fields_in_the_query() -> None:
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        keys = {"body": "raw", "rewrite": "/convert/{filename}"}
        async with run_gateway(config(upstream.url, split=keys)) as gateway:
            body = form(('name="lang"', b"de&en"), file("f", b"data", "ä b.txt"))
            sent = request(body).replace(b"POST /split", b"POST /split?x=1")
            parts = parts_of(await gateway.request(sent), 200)
            assert parts[0] | {"headers": 0, "body": 0} == {
                "part": 2, "field": "f", "filename": "ä b.txt", "type": "application/octet-stream", "size": 4,
                "status": 200, "headers": 0, "body": 0,
            }  # fmt: skip
            head, data = recorded.requests[0]
            assert (recorded.lines, data) == ([b"POST /convert/%C3%A4%20b.txt?x=1&lang=de%26en HTTP/1.1"], b"data")
            assert b"\r\nX-File-Name: %C3%A4%20b.txt\r\n" in head
            assert head.lower().count(b"content-type:") == 1
            assert b"Content-Type: application/octet-stream\r\n" in head
            assert b"Transfer-Encoding: chunked" in head


async def test_each_form_contains_one_file_and_the_fields_before_it() -> None:
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        async with run_gateway(config(upstream.url)) as gateway:
            quoted_name = 'name="f"; filename="a\\"; name=\\"x.txt"'
            body = form(('name="a"', b"1"), (quoted_name, b"one"), ('name="late"', b"2"), file("g", b"two"))
            parts_of(await gateway.request(request(body)), 200)
            first, second = (body for _, body in recorded.requests)
            boundary = first[2 : first.index(b"\r\n")]
            assert boundary != b"XBOUNDARYX"
            assert first == (
                b"--" + boundary + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
                b"--" + boundary + b'\r\nContent-Disposition: form-data; name="f"; filename="a%22; name=%22x.txt"\r\n'
                b"Content-Type: application/octet-stream\r\n\r\none\r\n--" + boundary + b"--\r\n"
            )
            assert second.count(b"Content-Disposition") == 3
            assert boundary not in second


@pytest.mark.parametrize(
    ("keys", "line", "headers"),
    [
        ({"keep": ["a"]}, b"/split?a=1", []),
        ({"drop": ["a"]}, b"/split?b=2%0D%0A", []),
        ({"rename": {"a": "alpha"}, "add": {"b": "9"}}, b"/split?alpha=1&b=9", []),
        ({"send": "none"}, b"/split", []),
        ({"send": "headers"}, b"/split", [b"X-Form-a: 1\r\n", b"X-Form-b: 2%0D%0A\r\n"]),
    ],
)
async def test_form_fields_are_selected_renamed_and_added(
    keys: dict[str, Any], line: bytes, headers: list[bytes]
) -> None:
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw", "form_fields": keys})) as gateway:
            body = form(('name="a"', b"1"), ('name="b"', b"2\r\n"), file("f", b"x"))
            parts_of(await gateway.request(request(body)), 200)
            assert recorded.lines == [b"POST " + line + b" HTTP/1.1"]
            assert all(header in recorded.requests[0][0] for header in headers)


async def test_next_file_is_sent_before_earlier_responses_arrive() -> None:
    """The upstream sends the first response only after it has received the whole third file."""
    third_arrived = asyncio.Event()

    async def script(wire: Wire) -> None:
        _, body = await read_request(wire)
        if body == b"three":
            third_arrived.set()
        await third_arrived.wait()
        await wire.send(response(200, body))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw", "max_parallel": 3})) as gateway:
            body = form(file("a", b"one"), file("b", b"two"), file("c", b"three"))
            parts = parts_of(await gateway.request(request(body)), 200)
            assert [part["body"] for part in parts] == ["one", "two", "three"]


async def test_max_parallel_limits_the_requests_in_flight() -> None:
    open_count = max_open = 0

    async def script(wire: Wire) -> None:
        nonlocal open_count, max_open
        while True:
            await wire.read_head()
            open_count += 1
            max_open = max(max_open, open_count)
            while await wire.read_until(b"\r\n") != b"0\r\n":
                await wire.read_until(b"\r\n")
            await wire.read_until(b"\r\n")
            open_count -= 1
            await wire.send(response(200, b"ok"))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw", "max_parallel": 2})) as gateway:
            body = form(*(file(f"f{number}", b"data") for number in range(9)))
            assert len(parts_of(await gateway.request(request(body)), 200)) == 9
            assert max_open <= 2


async def test_stop_sends_nothing_after_a_failure() -> None:
    recorded = RecordingScript(lambda _head, body: response(500 if body == b"two" else 200, b"."))
    async with RawUpstream(recorded) as upstream:
        keys = {"body": "raw", "on_error": "stop", "max_parallel": 1}
        async with run_gateway(config(upstream.url, split=keys)) as gateway:
            body = form(file("a", b"one"), file("b", b"two"), file("c", b"three"), file("d", b"x" * 10**6))
            parts = parts_of(await gateway.request(request(body)), 207)
            assert [(part["status"], part.get("error", {}).get("code")) for part in parts] == [
                (200, None),
                (500, None),
                (424, "not_sent"),
            ]
            assert [data for _, data in recorded.requests] == [b"one", b"two"]
            assert (await gateway.wait_log_line())["upload"] == "early_response"


async def test_stop_cuts_the_file_in_transfer() -> None:
    respond_500 = asyncio.Event()

    async def script(wire: Wire) -> None:
        head = await wire.read_head()
        if b"X-File-Name: a" in head:
            await respond_500.wait()
            await wire.send(response(500, b"no"))
            return
        await wire.read_until(b"begun")
        respond_500.set()
        await wire.read_to_end()

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw", "on_error": "stop"})) as gateway:
            client = await gateway.connect()
            body = form(file("a", b"one"), file("b", b"begun" + b"x" * 1000))
            # The end of the second file is never sent.
            await client.send(request(body)[:-100])
            parts = parts_of(await client.read_to_end(), 207)
            await client.close()
            assert [part["status"] for part in parts] == [500, 424]
            assert b"begun" in upstream.wires[1].received
            assert not upstream.wires[1].received.endswith(b"0\r\n\r\n")


async def test_client_that_disconnects_during_a_file_cuts_its_upstream_request() -> None:
    started = asyncio.Event()

    async def script(wire: Wire) -> None:
        while True:
            if b"X-File-Name: b" in await wire.read_head():
                await wire.read_until(b"begun")
                started.set()
                await wire.read_to_end()
                return
            await wire.read_until(b"0\r\n\r\n")
            await wire.send(response(200, b"ok"))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw"})) as gateway:
            client = await gateway.connect()
            await client.send(request(form(file("a", b"one"), file("b", b"begun" + b"x" * 1000)))[:-100])
            await started.wait()
            await client.close()
            line = await gateway.wait_log_line()
            assert (line["outcome"], line["upload"]) == ("client_left", "client_left")
            await upstream.wait_finished()
            assert all(not wire.received.endswith(b"x\r\n0\r\n\r\n") for wire in upstream.wires)


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="needs /proc of Linux to list what epoll watches")
async def test_stalled_file_leaves_no_watch_on_a_closed_descriptor() -> None:
    """The client's socket was closed while the task of the file still waited for it to become readable."""
    async with RawUpstream(RecordingScript()) as upstream:
        keys = {"timeouts": {"idle": "100ms"}}
        async with run_gateway(config(upstream.url, split={"body": "raw"}, **keys)) as gateway:
            client = await gateway.connect()
            await client.send(request(form(file("a", b"x" * 300_000)))[:-100_000])
            assert b" 408 " in await client.read_head()
            assert not stale_watches()
            await client.close()


def stale_watches() -> set[int]:
    """Return the descriptors that epoll watches and the running event loop has no entry for."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # asyncio has no public name for it
    lines = Path(f"/proc/self/fdinfo/{selector.fileno()}").read_text().splitlines()
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")} - set(selector.get_map())


async def test_client_that_disconnects_before_the_responses_cuts_the_upstream_at_once() -> None:
    async def script(wire: Wire) -> None:
        while not wire.received.endswith(b"\r\n0\r\n\r\n"):
            await wire.read_some()
        received.release()
        await wire.read_to_end()

    received = asyncio.Semaphore(0)
    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw", "max_parallel": 2})) as gateway:
            client = await gateway.connect()
            await client.send(request(form(file("a", b"one"), file("b", b"x" * 300_000))))
            for _ in range(2):
                await asyncio.wait_for(received.acquire(), TIMEOUT_SECONDS)
            await client.close()
            await upstream.wait_finished()
            assert (await gateway.wait_log_line())["outcome"] == "client_left"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_part": 1000}, "part_too_large"),
        ({"max_parts": 1}, "too_many_parts"),
        ({"max_body": 1500}, "body_too_large"),
    ],
)
async def test_limit_exceeded_by_a_later_file_refuses_the_request_and_cuts_the_upstream(
    limits: dict[str, int], code: str
) -> None:
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw"}, limits=limits)) as gateway:
            body = form(file("a", b"one"), file("b", b"x" * 5000))
            head = b"POST /split HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
            head += b"Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n\r\n"
            problem = problem_of(await gateway.request(head + chunked(body[:200], body[200:])))
            assert (problem["status"], problem["code"]) == (413, code)
            assert all(len(data) < 100 for _, data in recorded.requests)


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_held_fields_share_one_limit() -> None:
    async with RawUpstream(RecordingScript()) as upstream:
        async with run_gateway(config(upstream.url, limits={"max_held": 100})) as gateway:
            body = form(('name="a"', b"x" * 60), ('name="b"', b"x" * 60), file("f", b"data"))
            problem = problem_of(await gateway.request(request(body)))
            assert (problem["code"], problem["config_key"]) == ("field_too_large", "routes.s.limits.max_held")
            assert not upstream.wires


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_types_of_held_fields_count_as_well() -> None:
    async with RawUpstream(RecordingScript()) as upstream:
        async with run_gateway(config(upstream.url, limits={"max_held": 100})) as gateway:
            body = form(('name="a"', b"1"), file("f", b"data")).replace(
                b"\r\n\r\n1", b"\r\nContent-Type: %b\r\n\r\n1" % (b"x" * 200)
            )
            problem = problem_of(await gateway.request(request(body)))
            assert problem["config_key"] == "routes.s.limits.max_held"
            assert not upstream.wires


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_request_without_a_form_and_a_file_is_refused() -> None:
    async with RawUpstream(RecordingScript()) as upstream, run_gateway(config(upstream.url)) as gateway:
        assert problem_of(await gateway.request(request(b"x", content_type="text/plain")))["status"] == 415
        assert problem_of(await gateway.request(request(form(('name="a"', b"1")))))["code"] == "bad_multipart"
        assert not upstream.wires


async def test_early_response_skips_the_rest_of_its_file_and_the_next_file_is_sent() -> None:
    async def script(wire: Wire) -> None:
        head = await wire.read_head()
        if b"X-File-Name: a" in head:
            await wire.send(response(413, b"full"))
            await wire.close()
            return
        await wire.read_until(b"0\r\n\r\n")
        await wire.send(response(200, b"ok"))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw"})) as gateway:
            # More than the socket buffers hold; the upstream reads no byte of it.
            size = 30_000_000
            body = form(file("a", b"x" * size), file("b", b"two"))
            parts = parts_of(await gateway.request(request(body)), 207)
            assert [part["status"] for part in parts] == [413, 200]
            assert parts[0]["size"] <= size


async def test_refused_connection_is_the_result_of_its_file() -> None:
    async with run_gateway(config("http://127.0.0.1:9", split={"body": "raw"})) as gateway:
        parts = parts_of(await gateway.request(request(form(file("a", b"one"), file("b", b"two")))), 207)
        assert [(part["status"], part["error"]["code"]) for part in parts] == [(502, "connect_refused")] * 2


async def test_stalled_response_is_the_result_of_its_file() -> None:
    async def script(wire: Wire) -> None:
        await read_request(wire)
        await wire.send(response(200, b"whole answer")[:-3])
        await wire.read_to_end()

    async with RawUpstream(script) as upstream:
        keys = {"timeouts": {"idle": "100ms"}}
        async with run_gateway(config(upstream.url, upstream_keys=keys)) as gateway:
            parts = parts_of(await gateway.request(request(form(file("a", b"one")))), 207)
            assert (parts[0]["status"], parts[0]["error"]["code"]) == (504, "upstream_idle")


async def test_responses_share_one_size_limit() -> None:
    recorded = RecordingScript(lambda _head, _body: response(200, b"y" * 600))
    async with RawUpstream(recorded) as upstream:
        async with run_gateway(config(upstream.url, split={"max_response_bytes": 1000, "max_parallel": 1})) as gateway:
            parts = parts_of(await gateway.request(request(form(file("a", b"one"), file("b", b"two")))), 207)
            assert parts[0]["body"] == "y" * 600
            assert parts[1]["error"]["code"] == "response_too_large"
            assert "routes.s.split.max_response_bytes" in parts[1]["error"]["detail"]


async def test_concurrent_responses_share_one_size_limit() -> None:
    all_arrived, arrived_count = asyncio.Event(), 0

    async def script(wire: Wire) -> None:
        nonlocal arrived_count
        await read_request(wire)
        arrived_count += 1
        if arrived_count == 3:
            all_arrived.set()
        await all_arrived.wait()
        await wire.send(response(200, b"y" * 500))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"max_response_bytes": 1200, "max_parallel": 3})) as gateway:
            parts = parts_of(await gateway.request(request(form(*(file(name, b"x") for name in "abc")))), 207)
            assert sorted(part["status"] for part in parts) == [200, 200, 502]


@pytest.mark.parametrize("name", [".", "..", ""])
async def test_file_name_of_dots_stays_one_path_segment(name: str) -> None:
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        async with run_gateway(config(upstream.url, split={"rewrite": "/convert/{filename}"})) as gateway:
            parts_of(await gateway.request(request(form((f'name="f"; filename="{name}"', b"x")))), 200)
            assert recorded.lines == [b"POST /convert/upload HTTP/1.1"]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (b"application/json", b'{"n": 1.10, "b": [1,\n2]}', '"body": {"n": 1.10, "b": [1,\n2]}'),
        (b"application/problem+json; charset=utf-8", b'{"n": 1}', '"body": {"n": 1}'),
        (b"application/json", b'{"n": NaN}', '"body_base64": "eyJuIjogTmFOfQ=="'),
        (b"application/json", b'{"n": 1}, "status": 7', '"body_base64"'),
        (b"text/plain", '"quoted" ä'.encode(), '"body": "\\"quoted\\" \\u00e4"'),
        (b"image/png", b"\x89PNG", '"body_base64": "iVBORw=="'),
    ],
)
async def test_response_bodies_are_copied_into_the_document_unchanged(kind: bytes, body: bytes, expected: str) -> None:
    recorded = RecordingScript(lambda _head, _body: response(200, body, kind))
    async with RawUpstream(recorded) as upstream, run_gateway(config(upstream.url)) as gateway:
        raw = await gateway.request(request(form(file("a", b"one"))))
        assert expected in split_response(raw)[2].decode()
        assert len(parts_of(raw, 200)) == 1


@pytest.mark.parametrize(("declared", "status"), [(3, 200), (2, 400), (4, 400)])
async def test_declared_length_of_a_part_is_sent_upstream_and_enforced(declared: int, status: int) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        head, body = await read_request(wire)
        finished.append(body)
        assert b"Content-Length: 3\r\n" in head
        await wire.send(response(200, b"ok"))

    async with RawUpstream(script) as upstream:
        async with run_gateway(config(upstream.url, split={"body": "raw"})) as gateway:
            body = form(file("a", b"one")).replace(b"\r\n\r\none", b"\r\nContent-Length: %d\r\n\r\none" % declared)
            assert split_response(await gateway.request(request(body)))[0] == status
            assert finished == ([b"one"] if status == 200 else [])


async def test_full_upstream_refuses_before_100_is_sent() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await read_request(wire)
        started.set()
        await release.wait()
        await wire.send(response(200, b"ok"))

    async with RawUpstream(script) as upstream:
        keys = {"max_in_flight": 1, "max_queued": 0}
        async with run_gateway(config(upstream.url, upstream_keys=keys)) as gateway:
            first = asyncio.create_task(gateway.request(request(form(file("a", b"one")))))
            await started.wait()
            client = await gateway.connect()
            head = request(form(file("a", b"one")), headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")[0]
            await client.send(head + b"\r\n\r\n")
            assert problem_of(await client.read_to_end())["code"] == "queue_full"
            await client.close()
            release.set()
            parts_of(await first, 200)


@pytest.mark.parametrize("seed", range(12))
async def test_any_order_size_and_chunking_arrives_identical(seed: int) -> None:
    generator = random.Random(seed)
    parts: list[tuple[str, bytes]] = []
    for number in range(generator.randint(1, 8)):
        data = generator.choice(
            (b"", b"\r\n", b"\r\n--", b"--XBOUNDARY", generator.randbytes(generator.randint(1, 200_000)))
        )
        parts.append(file(f"f{number}", data) if generator.random() < 0.7 else (f'name="n{number}"', data[:1000]))
    parts.append(file("last", generator.randbytes(10)))
    body = form(*parts)
    files = [data for parameters, data in parts if "filename" in parameters]
    recorded = RecordingScript()
    async with RawUpstream(recorded) as upstream:
        keys = {"body": "raw", "form_fields": {"send": "none"}, "max_parallel": generator.randint(1, 4)}
        async with run_gateway(config(upstream.url, split=keys)) as gateway:
            client = await gateway.connect()
            wire = request(body)
            at = 0
            while at < len(wire):
                size = generator.choice((1, 7, 100, 5000, 100_000))
                await client.send(wire[at : at + size])
                at += size
            results = parts_of(await client.read_to_end(), 200)
            await client.close()
            assert [result["body"] for result in results] == [sha256(data) for data in files]
            assert [result["size"] for result in results] == [len(data) for data in files]


@pytest.mark.expected_log("gateway", "drain_timeout of 0.1 s is over", reason="the file is not sent to its end")
async def test_gateway_that_stops_cuts_every_file() -> None:
    started = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_head()
        started.set()
        await wire.read_to_end()

    async with RawUpstream(script) as upstream:
        settings = config(upstream.url, split={"body": "raw"}) | {"drain_timeout": "100ms"}
        async with run_gateway(settings) as gateway:
            client = await gateway.connect()
            await client.send(request(form(file("a", b"x" * 100_000)))[:-50])
            await started.wait()
        assert b"HTTP/1.1 200" not in await client.read_to_end()
        await client.close()
        assert not upstream.received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("count", [1, 2])
async def test_split_whose_files_all_fail_has_their_outcome_and_blame(count: int) -> None:
    """The status was 207, the outcome `complete`, and the blame `none`."""
    with socket.socket() as taken:
        # Bound and not listening: the kernel refuses connections.
        taken.bind(("127.0.0.1", 0))
        async with run_gateway(config(f"http://127.0.0.1:{taken.getsockname()[1]}")) as gateway:
            body = form(*(file(f"f{number}", b"x") for number in range(count)))
            parts_of(await gateway.request(request(body)), 207)
            line = await gateway.wait_log_line()
            assert (line["outcome"], line["blame"]) == ("upstream_failed", "upstream")


def test_file_that_the_gateway_failed_is_worse_than_one_that_an_upstream_or_the_client_failed() -> None:
    worst: FileEnd | None = None
    for outcome, blame, expected in (
        (Outcome.COMPLETE, Blame.NONE, "complete"),
        (Outcome.REFUSED, Blame.CLIENT, "refused"),
        (Outcome.UPSTREAM_SLOW, Blame.UPSTREAM, "upstream_slow"),
        (Outcome.UPSTREAM_FAILED, Blame.UPSTREAM, "upstream_slow"),
        (Outcome.BUG, Blame.GATEWAY, "bug"),
        (Outcome.COMPLETE, Blame.NONE, "bug"),
    ):
        worst = worse_file(worst, FileEnd(outcome, blame))
        assert (worst.outcome if worst else "complete") == expected
    assert worst == (Outcome.BUG, Blame.GATEWAY)
