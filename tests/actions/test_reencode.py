"""Re-encoded bodies: forms unwrapped, wrapped and edited, files filtered, framing per upstream; never incomplete."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import random
from typing import Any

import pytest

from gateway.multipart import FormField, FormWriter
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
    run_gateway,
    split_response,
)

DATA = os.urandom(500_000)
FILE = ('name="f"; filename="a b.bin"', DATA)


class RecordingUpstream(RawUpstream):
    """An upstream that records every complete request."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        super().__init__(self._run_script)

    async def _run_script(self, wire: Wire) -> None:
        while True:
            head, body = await read_request(wire)
            self.heads.append(head)
            self.bodies.append(body)
            await wire.send(OK)


def config(upstream: RecordingUpstream, framing: Any = "auto", **route: Any) -> dict[str, Any]:
    return forward_config(upstream.url, upstream_keys={"framing": framing}, **route)


def as_chunked(request: bytes, *cuts: int) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    head = head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    at = [0, *cuts, len(body)]
    return head + chunked(*(body[begin:end] for begin, end in itertools.pairwise(at)))


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("framing", ["auto", "chunked"])
async def test_file_of_a_form_is_unwrapped(is_chunked: bool, framing: str) -> None:
    async with (
        RecordingUpstream() as upstream,
        run_gateway(config(upstream, framing, forward={"body": "raw"})) as gateway,
    ):
        request = post(form(('name="lang"', b"de"), FILE), target="/x?y=1")
        response = await gateway.request(as_chunked(request, 10, 300_000) if is_chunked else request)
        assert split_response(response)[0] == 200
        assert upstream.bodies == [DATA]
        head = upstream.heads[0]
        assert head.startswith(b"POST /x?y=1&lang=de HTTP/1.1\r\n")
        assert b"\r\nX-File-Name: a%20b.bin\r\n" in head
        assert b"\r\nContent-Type: application/octet-stream\r\n" in head
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        line = await gateway.wait_log_line()
        assert [(part["kind"], part["outcome"]) for part in line["parts"]] == [
            ("field", "complete"),
            ("file", "complete"),
        ]
        assert (line["upload"], line["outcome"]) == ("complete", "complete")


async def test_unwrapped_file_has_a_content_length_if_the_upstream_requires_one() -> None:
    async with RecordingUpstream() as upstream:
        async with run_gateway(config(upstream, "length_required", forward={"body": "raw"})) as gateway:
            assert split_response(await gateway.request(post(form(('name="lang"', b"de"), FILE))))[0] == 200
            assert upstream.bodies == [DATA]
            assert b"Content-Length: %d\r\n" % len(DATA) in upstream.heads[0]


@pytest.mark.parametrize(
    "body",
    [form(FILE, ('name="late"', b"x")), form(FILE, FILE), form(FILE)[:-2], form(FILE, epilogue=b"more")],
    ids=["field after the file", "second file", "no final line break", "epilogue"],
)
async def test_file_whose_length_was_predicted_wrong_cuts_the_upstream(body: bytes) -> None:
    async with RecordingUpstream() as upstream:
        async with run_gateway(config(upstream, "length_required", forward={"body": "raw"})) as gateway:
            problem = problem_of(await gateway.request(post(body)))
            assert problem["status"] in (411, 422)
            assert not upstream.bodies


@pytest.mark.parametrize(
    ("route", "is_form"),
    [({"forward": {"body": "raw"}}, True), ({}, True), ({}, False), ({"filters": ["compress"]}, False)],
)
async def test_chunked_body_is_411_if_the_upstream_requires_a_length(route: dict[str, Any], is_form: bool) -> None:
    async with RecordingUpstream() as upstream, run_gateway(config(upstream, "length_required", **route)) as gateway:
        request = post(form(FILE)) if is_form else post(DATA, content_type="x/y")
        problem = problem_of(await gateway.request(as_chunked(request)))
        assert (problem["status"], problem["code"]) == (411, "length_required")
        assert not upstream.bodies


async def test_body_with_a_length_is_sent_chunked_if_configured() -> None:
    async with RecordingUpstream() as upstream, run_gateway(config(upstream, "chunked")) as gateway:
        assert split_response(await gateway.request(post(DATA, content_type="x/y")))[0] == 200
        assert upstream.bodies == [DATA]
        assert b"Transfer-Encoding: chunked" in upstream.heads[0]


@pytest.mark.parametrize(
    ("parts", "keys", "code"),
    [
        ([FILE, ('name="late"', b"x")], {}, "unexpected_part"),
        ([FILE, FILE], {}, "unexpected_part"),
        ([('name="a"', b"x")], {}, "bad_multipart"),
        ([('name="a"', b"x" * 70_000), FILE], {}, "field_too_large"),
        ([('name="a"', b"x" * 5000), FILE], {"form_fields": {"send": "headers"}}, "field_too_large"),
    ],
)
async def test_form_that_cannot_be_unwrapped_is_refused_or_cut(
    parts: list[tuple[str, bytes]], keys: dict[str, Any], code: str
) -> None:
    async with (
        RecordingUpstream() as upstream,
        run_gateway(config(upstream, forward={"body": "raw", **keys})) as gateway,
    ):
        assert problem_of(await gateway.request(post(form(*parts))))["code"] == code
        assert not upstream.bodies


async def test_dropped_field_after_the_file_is_accepted() -> None:
    async with RecordingUpstream() as upstream:
        keys = {"body": "raw", "form_fields": {"drop": ["late"]}}
        async with run_gateway(config(upstream, forward=keys)) as gateway:
            assert split_response(await gateway.request(post(form(FILE, ('name="late"', b"x")))))[0] == 200
            assert upstream.bodies == [DATA]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_raw_body_is_wrapped_into_a_form(is_chunked: bool) -> None:
    async with RecordingUpstream() as upstream:
        keys = {"body": "multipart", "file_field": "audio", "form_fields": {"add": {"model": "big"}}}
        async with run_gateway(config(upstream, forward=keys)) as gateway:
            request = post(DATA, target="/up/a%20b.wav", content_type="audio/wav")
            assert split_response(await gateway.request(as_chunked(request) if is_chunked else request))[0] == 200
            head, body = upstream.heads[0], upstream.bodies[0]
            boundary = body[2 : body.index(b"\r\n")]
            assert body == (
                b"--" + boundary + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n--' + boundary
                + b'\r\nContent-Disposition: form-data; name="audio"; filename="a b.wav"\r\nContent-Type: audio/wav'
                + b"\r\n\r\n" + DATA + b"\r\n--" + boundary + b"--\r\n"
            )  # fmt: skip
            assert b"Content-Type: multipart/form-data; boundary=" + boundary in head
            assert (b"Content-Length: %d\r\n" % len(body) in head) is not is_chunked


async def test_form_is_re_encoded_with_edited_fields() -> None:
    async with RecordingUpstream() as upstream:
        keys = {"form_fields": {"drop": ["secret"], "rename": {"lang": "language"}, "add": {"model": "big"}}}
        async with run_gateway(config(upstream, forward=keys)) as gateway:
            parts = [
                ('name="lang"', b"de"),
                ('name="secret"', b"s"),
                ('name="model"', b"tiny"),
                FILE,
                ('name="z"', b"9"),
            ]
            assert split_response(await gateway.request(post(form(*parts))))[0] == 200
            body = upstream.bodies[0]
            names = [line for line in body.split(b"\r\n") if line.startswith(b"Content-Disposition")]
            assert [name.partition(b"; ")[2] for name in names] == [
                b'name="model"', b'name="language"', b'name="f"; filename="a b.bin"', b'name="z"',
            ]  # fmt: skip
            assert DATA in body
            assert body.count(b"\r\n\r\nbig\r\n--gateway-") == 1


@pytest.mark.parametrize("kind", ["form", "raw"])
async def test_forwarded_body_is_the_output_of_the_filters(kind: str) -> None:
    async with (
        RecordingUpstream() as upstream,
        run_gateway(config(upstream, filters=["decompress", "digest"])) as gateway,
    ):
        compressed = gzip.compress(DATA)
        request = (
            post(compressed, content_type="x/y")
            if kind == "raw"
            else post(form(('name="f"; filename="a"', compressed)))
        )
        status, headers, _ = split_response(await gateway.request(request))
        assert (status, DATA in upstream.bodies[0]) == (200, True)
        assert headers["x-upload-digest"].startswith("sha-256=:")
        assert (upstream.bodies[0] == DATA) == (kind == "raw")


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_sniff_refuses_a_re_encoded_form_before_the_upstream_is_connected() -> None:
    async with RecordingUpstream() as upstream:
        keys = {"forward": {"multipart": "strict"}, "filters": [{"sniff": {"allow": ["image/*"]}}]}
        async with run_gateway(config(upstream, **keys)) as gateway:
            assert problem_of(await gateway.request(post(form(('name="a"', b"1"), FILE))))["code"] == "type_not_allowed"
            assert not upstream.wires


@pytest.mark.parametrize("body", ["raw", "as_is"])
async def test_client_that_disconnects_during_a_file_cuts_the_re_encoded_body(body: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.read_to_end()

    async with RawUpstream(script) as upstream:
        keys = {"body": body, "form_fields": {"add": {"x": "1"}}}
        async with run_gateway(forward_config(upstream.url, forward=keys)) as gateway:
            client = await gateway.connect()
            await client.send_all([post(form(FILE))[:200_000]])
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            client.reset()
            await upstream.wait_finished()
            line = await gateway.wait_log_line()
            assert (line["outcome"], line["upload"]) == ("client_left", "client_left")
            assert not upstream.received.endswith(b"0\r\n\r\n")


async def test_client_that_disconnects_before_the_response_to_a_re_encoded_body_cuts_the_upstream_at_once() -> None:
    received = asyncio.Event()

    async def script(wire: Wire) -> None:
        while not wire.received.endswith(b"\r\n0\r\n\r\n"):
            await wire.read_some()
        received.set()
        await wire.read_to_end()

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, forward={"body": "raw"})) as gateway:
            client = await gateway.connect()
            await client.send(post(form(FILE)))
            await asyncio.wait_for(received.wait(), TIMEOUT_SECONDS)
            await client.close()
            await upstream.wait_finished()
            assert (await gateway.wait_log_line())["outcome"] == "client_left"


async def test_early_response_to_a_re_encoded_body_reaches_the_client() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nfull")
        await wire.close()

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, forward={"body": "raw"})) as gateway:
            response = await gateway.request(post(form(('name="f"; filename="a"', DATA * 20))))
            assert split_response(response)[::2] == (413, b"full")
            assert (await gateway.wait_log_line())["upload"] == "early_response"


@pytest.mark.parametrize(
    "body",
    [
        form(('name="f"; filename="a"; filename*=UTF-8\'\'b', b"x")),
        form(("name=\"f\"; filename*=UTF-8''b", b"x")),
        form(('name="f\x01"; filename="a"', b"x")),
        form(FILE).replace(b"Content-Type: application/octet-stream", b"Content-Type: a/b\r\nContent-Type: c/d"),
        form(FILE).replace(b"Content-Type: application/octet-stream", b"Content-Transfer-Encoding: base64"),
        form(FILE).replace(b"Content-Type: application/octet-stream", b"Content-Type: a/b;\r\n charset=x"),
        form(FILE).replace(b'name="f"', b'name="\xff"'),
        form(FILE).replace(b"Content-Type: application/octet-stream", b"Content-Type: \x80text/plain"),
        form(('name="a\\"b"', b"x")),
        form(('name="a%22b"', b"x")),
        form(('name="f"; filename="c:\\dir\\x.txt"', b"x")),
        form(FILE, preamble=b"hello\r\n"),
        form(FILE, epilogue=b"bye"),
    ],
)
async def test_strict_refuses_forms_that_parsers_read_in_two_ways(body: bytes) -> None:
    async with RecordingUpstream() as upstream:
        async with run_gateway(config(upstream, forward={"multipart": "strict"})) as gateway:
            assert problem_of(await gateway.request(post(body)))["code"] == "bad_multipart"
            assert not upstream.bodies


@pytest.mark.parametrize("seed", range(8))
async def test_re_encoded_form_has_the_same_parts_in_any_chunking(seed: int) -> None:
    generator = random.Random(seed)
    parts = []
    for number in range(generator.randint(1, 7)):
        data = generator.choice(
            (b"", b"\r\n--XBOUNDARYX"[: generator.randint(1, 10)], generator.randbytes(generator.randint(1, 90_000)))
        )
        filename = f'; filename="{number}.bin"' if generator.random() < 0.5 else ""
        parts.append((f'name="n{number}"{filename}', data))
    async with (
        RecordingUpstream() as upstream,
        run_gateway(config(upstream, forward={"multipart": "strict"})) as gateway,
    ):
        request = post(form(*parts))
        cuts = sorted(generator.sample(range(1, 120), 5))
        assert split_response(await gateway.request(as_chunked(request, *cuts)))[0] == 200
        body = upstream.bodies[0]
        boundary = body[2 : body.index(b"\r\n")]
        assert boundary.startswith(b"gateway-")
        assert body == form(*parts, boundary=boundary)


def test_special_characters_in_names_are_escaped() -> None:
    writer = FormWriter()
    field = writer.field(FormField('a"\r\nX: y\\', b"v", "text/x\r\nEvil: 1"))
    assert field.count(b"\r\n") == 4
    assert b'name="a%22%0D%0AX: y%5C"' in field
