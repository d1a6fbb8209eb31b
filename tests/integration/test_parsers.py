"""With `multipart: strict` every common parser finds the same parts in a form."""

from __future__ import annotations

import io
from typing import Any

import multipart
import pytest
from django.conf import settings
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http.multipartparser import MultiPartParser
from python_multipart import FormParser
from werkzeug.formparser import parse_form_data

from tests.peers import OK, RawUpstream, Wire, form, forward_config, post, read_request, run_gateway, split_response

Parts = list[tuple[str, str | None, bytes]]

BODIES = {
    "plain": form(('name="a"', b"1"), ('name="f"; filename="x.bin"', bytes(range(256)))),
    "empty file": form(('name="f"; filename="e.bin"', b"")),
    "names": form(('name="ä ö"', "ü".encode()), ('name="f"; filename="日本 é.txt"', b"x")),
    "semicolons": form(('name="a;b=c"', b"1"), ('name="f"; filename="x; name=y.txt"', b"x")),
    "unquoted": form(("name=a", b"1"), ("name=f; filename=x.txt", b"x")),
    "like a boundary": form(('name="f"; filename="x"', b"--XBOUNDARY\n\r--XBOUND\r\n--XBOUNDAR")),
    "line breaks": form(('name="a"', b"\r\n\r\n"), ('name="f"; filename="x"', b"\n\r\r\n")),
}


def with_werkzeug(content_type: str, body: bytes) -> Parts:
    environ = {
        "wsgi.input": io.BytesIO(body),
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "REQUEST_METHOD": "POST",
    }
    _, fields, files = parse_form_data(environ)
    return [(name, None, value.encode()) for name, value in fields.items(multi=True)] + [
        (name, file.filename, file.read()) for name, file in files.items(multi=True)
    ]


def with_django(content_type: str, body: bytes) -> Parts:
    if not settings.configured:
        settings.configure()
    meta = {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(len(body))}
    fields, files = MultiPartParser(meta, io.BytesIO(body), [MemoryFileUploadHandler()], "utf-8").parse()
    return [(name, None, value.encode()) for name, values in fields.lists() for value in values] + [
        (name, file.name, file.read()) for name, values in files.lists() for file in values
    ]


def with_multipart(content_type: str, body: bytes) -> Parts:
    parser = multipart.MultipartParser(io.BytesIO(body), content_type.partition("boundary=")[2])
    return [(part.name, part.filename, part.raw) for part in parser]


def with_python_multipart(content_type: str, body: bytes) -> Parts:
    seen: Parts = []

    def on_field(field: Any) -> None:
        seen.append((field.field_name.decode(), None, field.value or b""))

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        seen.append((file.field_name.decode(), file.file_name.decode(), file.file_object.read()))

    boundary = content_type.partition("boundary=")[2].encode()
    parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary)
    parser.write(body)
    parser.finalize()
    return seen


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize("name", BODIES)
async def test_every_parser_finds_the_same_parts(name: str) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        seen.append(await read_request(wire))
        await wire.send(OK)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, forward={"multipart": "strict"})) as gateway:
            assert split_response(await gateway.request(post(BODIES[name])))[0] == 200
    head, body = seen[0]
    content_type = head.partition(b"Content-Type: ")[2].partition(b"\r\n")[0].decode()
    found = {
        parser.__name__: sorted(parser(content_type, body), key=repr)
        for parser in (with_werkzeug, with_django, with_multipart, with_python_multipart)
    }
    expected = found["with_multipart"]
    assert len(expected) == BODIES[name].count(b"form-data")
    for parser, parts in found.items():
        assert parts == expected, parser
