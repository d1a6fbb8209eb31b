"""Forms: chunks of any size give the same result, and other parsers find the parts of a form that `strict` accepts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.config import Limits
from gateway.errors import Fault
from gateway.multipart import FormContent, FormParts, FormWriter, boundary_of
from gateway.multipart.strict import check_strict
from tests.fuzz.explore import explore
from tests.integration.test_parsers import Parts, with_multipart, with_python_multipart, with_werkzeug
from tests.multipart.test_reader import Chunks, inspect, one_by_one, split_at

pytestmark = pytest.mark.slow

BOUNDARY = b"XBOUNDARYX"
PIECES = st.one_of(
    st.sampled_from(
        [
            b"--XBOUNDARYX",
            b"\r\n--XBOUNDARYX\r\n",
            b"\r\n--XBOUNDARYX--\r\n",
            b"--XBOUNDARYX--",
            b"\n--XBOUNDARYX\n",
            b"\r\n--XBOUNDARYX \t\r\n",
            b"\r\n--XBOUNDARY",
            b"\r\n",
            b"\r",
            b"\n",
            b"\r\n\r\n",
            b"--",
            b'Content-Disposition: form-data; name="a"\r\n\r\n',
            b'Content-Disposition: form-data; name="f"; filename="x"\r\n',
            b'Content-Disposition: form-data; name="f"; filename="x\\"y"\r\n\r\n',
            b"Content-Disposition: form-data; name=f; filename*=UTF-8''%e4\r\n\r\n",
            b'content-disposition:form-data;name="a;b";\r\n\r\n',
            b"Content-Disposition: attachment\r\n\r\n",
            b"Content-Type: text/plain; charset=x\r\n",
            b"Content-Type: multipart/mixed; boundary=XBOUNDARYX\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            b"Content-Length: 3\r\n",
            b" folded\r\n",
            b"X: \xff\0\r\n",
            b"data",
        ]
    ),
    st.binary(max_size=8),
)


@st.composite
def bodies(draw: Any) -> bytes:
    """Return a form: well-formed but for a few bytes, or of arbitrary pieces."""
    if draw(st.booleans()):
        return b"".join(draw(st.lists(PIECES, max_size=14)))
    text = bytearray()
    for _ in range(draw(st.integers(0, 3))):
        text += b"--XBOUNDARYX\r\nContent-Disposition: form-data; name="
        text += draw(
            st.sampled_from([b'"a"', b"a", b'"a\\"b"', b'"a%22"', b'"\xc3\xa4"', b'"\xff"', b'""', b'"a;b=c"'])
        )
        text += draw(
            st.sampled_from([b"", b'; filename="x.txt"', b"; filename=x", b'; filename=""', b'; filename="\\\\x"'])
        )
        text += b"\r\n" + draw(st.sampled_from([b"", b"Content-Type: text/plain\r\n", b"X-A: b\r\n"])) + b"\r\n"
        text += b"".join(draw(st.lists(PIECES, max_size=4))) if draw(st.booleans()) else draw(st.binary(max_size=20))
        text += b"\r\n"
    text += b"--XBOUNDARYX--" + draw(st.sampled_from([b"", b"\r\n", b"\r\nepilogue"]))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=1)):
        text[at % len(text)] = value
    return bytes(text)


def test_chunks_of_any_size_give_the_same_result() -> None:
    def check(case: tuple[bytes, list[int]]) -> None:
        body, cuts = case
        whole = inspect([body])
        assert inspect(one_by_one(body)) == whole
        assert inspect(split_at(body, cuts)) == whole

    explore(st.tuples(bodies(), st.lists(st.integers(0, 10_000), max_size=6)), check, examples=300)


async def read_strict(body: bytes) -> tuple[Parts, str, bytes] | None:
    """Return the parts that `multipart: strict` finds, and the form that it writes; None for a form it refuses."""
    content = FormContent(BOUNDARY, Limits(), "r", Chunks([body]), is_strict=True)
    writer, form, parts = FormWriter(), b"", []
    try:
        async for part in FormParts(content, BOUNDARY, Limits(), "r", check=check_strict):
            data = bytearray()
            while piece := await part.read():
                data += piece
            name, filename = part.disposition.name, part.disposition.filename
            if filename is None:
                form += writer.file_head(name, "field", None) + data
            else:
                form += writer.file_head(name, filename, part.content_type) + data
            parts.append((name, filename, bytes(data)))
    except Fault:
        return None
    return parts, writer.content_type.decode(), form + writer.end()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_other_parsers_find_the_parts_that_strict_writes() -> None:
    def check(body: bytes) -> None:
        found = asyncio.run(read_strict(body))
        if found is None or not found[0]:
            return
        parts, content_type, written = found
        expected = [data for _, _, data in parts]
        for parser in (with_multipart, with_python_multipart, with_werkzeug):
            assert sorted(data for _, _, data in parser(content_type, written)) == sorted(expected), parser

    explore(bodies(), check, examples=200)


def test_boundary_is_found_or_refused() -> None:
    def check(value: bytes) -> None:
        try:
            boundary = boundary_of("multipart/form-data" + value.decode("latin-1"))
        except Fault:
            return
        assert 0 < len(boundary) <= 70

    values = st.lists(st.sampled_from([b";", b" ", b"boundary", b"=", b'"', b"\\", b"a", b"'", b"\xff", b"charset=x"]))
    explore(values.map(b"".join), check, examples=300)
