"""Multipart: chunks of any size give the same result; bodies on which parsers differ are refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.config import Limits
from gateway.errors import Fault
from gateway.multipart import (
    EndedPart,
    FormContent,
    FormParts,
    Part,
    PartInspector,
    boundary_of,
    content,
    form_boundary_of,
    parse_disposition,
)
from gateway.multipart.content import TURN_TOKENS
from tests.peers import form

BOUNDARY = b"XBOUNDARYX"
Seen = list[tuple[str, str | None, int]]
FILE = 'name="f"; filename="a.txt"'


def inspect(pieces: Iterable[bytes], limits: Limits | None = None, boundary: bytes = BOUNDARY) -> Seen | str:
    """Push chunks into an inspector: return its parts, or the code of its fault."""
    seen: Seen = []

    def record(part: EndedPart) -> None:
        assert isinstance(part, Part)
        seen.append((part.disposition.name, part.disposition.filename, part.size))

    inspector = PartInspector(boundary, limits or Limits(), "r", record)
    try:
        for piece in pieces:
            while inspector.feed_data(piece):
                piece = b""  # noqa: PLW2901
        inspector.finish()
    except Fault as fault:
        return fault.kind.code
    finally:
        inspector.close()
    return seen


class Chunks:
    """Chunks as the source of a form; counts the turns it was asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.turn_count = 0

    async def pull(self) -> bytes:
        return next(self._chunks, b"")

    async def take_turn(self) -> None:
        self.turn_count += 1


class LastChunk(Chunks):
    """Chunks as the source of a form; counts the references to each when the next is pulled."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__(chunks)
        self._last = b""
        self.reference_counts: list[int] = []

    async def pull(self) -> bytes:
        self.reference_counts.append(sys.getrefcount(self._last))
        self._last = b""
        self._last = await super().pull()
        return self._last


async def pull(pieces: Iterable[bytes], boundary: bytes = BOUNDARY) -> list[bytes] | str:
    """Pull the body through `FormParts`: return the data of each part, or the code of its fault."""
    content = FormContent(boundary, Limits(), "r", Chunks(pieces))
    data = []
    try:
        async for part in FormParts(content, boundary, Limits(), "r"):
            whole = bytearray()
            while piece := await part.read():
                whole += piece
            data.append(bytes(whole))
    except Fault as fault:
        return fault.kind.code
    return data


def one_by_one(body: bytes) -> list[bytes]:
    return [body[at : at + 1] for at in range(len(body))]


def split_at(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges) if b > a]


# Data of which every piece is nearly a delimiter.
NEAR_DELIMITERS = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", b"XBOUNDARY", b"XBOUNDARYX"[:5], b"a", b"\0", b"\r\n--XBOUNDARy"]
    ),
    max_size=30,
).map(b"".join)


def is_ambiguous(data: bytes) -> bool:
    """Return whether data has a boundary at the start of a line: such data must be refused."""
    return b"--XBOUNDARYX" in b"\r\n" + data


@given(parts=st.lists(NEAR_DELIMITERS, max_size=4), cuts=st.lists(st.integers(0, 10_000), max_size=40))
def test_chunks_of_any_size_give_the_same_parts(parts: list[bytes], cuts: list[int]) -> None:
    parts = [data for data in parts if not is_ambiguous(data)]
    body = form(*((FILE, data) for data in parts))
    expected: Seen = [("f", "a.txt", len(data)) for data in parts]
    assert inspect([body]) == expected
    assert inspect(one_by_one(body)) == expected
    assert inspect(split_at(body, cuts)) == expected


@given(parts=st.lists(NEAR_DELIMITERS, max_size=3), cuts=st.lists(st.integers(0, 10_000), max_size=40))
async def test_pulled_parts_are_byte_identical(parts: list[bytes], cuts: list[int]) -> None:
    parts = [data for data in parts if not is_ambiguous(data)]
    body = form(*((FILE, data) for data in parts))
    for pieces in ([body], one_by_one(body), split_at(body, cuts)):
        assert await pull(pieces) == parts


LINES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"--",
    b"XBOUNDARYX",
    b"--XBOUNDARYX",
    b"a: b",
    b" ",
    b"Content-Disposition: form-data; name=a",
]


@given(
    body=st.lists(st.sampled_from(LINES), max_size=14).map(b"".join),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
def test_chunks_of_any_size_of_any_bytes_give_the_same_result(body: bytes, cuts: list[int]) -> None:
    result = inspect([body])
    assert inspect(one_by_one(body)) == result
    assert inspect(split_at(body, cuts)) == result


@given(parts=st.lists(st.binary(max_size=200), max_size=4))
async def test_accepted_forms_have_the_same_parts_in_aiohttp(parts: list[bytes]) -> None:
    """aiohttp's BodyPartReader is the reference for the parts of an accepted form."""
    body = form(*((FILE, data) for data in parts))
    ours = await pull([body])
    assert not isinstance(ours, str)
    stream = aiohttp.StreamReader(_Protocol(), 2**16)  # type: ignore[arg-type]  # a reader that is fed by hand
    stream.feed_data(body)
    stream.feed_eof()
    reader = aiohttp.MultipartReader(CIMultiDict({"Content-Type": "multipart/form-data; boundary=XBOUNDARYX"}), stream)
    theirs = []
    while (part := await reader.next()) is not None:
        assert isinstance(part, aiohttp.BodyPartReader)
        theirs.append(bytes(await part.read()))
    assert ours == theirs == parts


class _Protocol:
    """The methods of a protocol that StreamReader calls."""

    _reading_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


GOOD = form((FILE, b"data"))
HEAD = b"--XBOUNDARYX\r\nContent-Disposition: form-data; name=f\r\n"
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "wrong boundary": GOOD.replace(b"XBOUNDARYX", b"YBOUNDARYY"),
    "no final boundary": GOOD[: GOOD.rindex(b"\r\n--")],
    "cut in the final boundary": GOOD[:-6],
    "one dash at the end": GOOD[:-3],
    "header without colon": GOOD.replace(b"Content-Type: ", b"Content-Type "),
    "no disposition": b"--XBOUNDARYX\r\nX: y\r\n\r\ndata\r\n--XBOUNDARYX--\r\n",
    "two dispositions": HEAD + b"Content-Disposition: form-data; name=g\r\n\r\ndata\r\n--XBOUNDARYX--\r\n",
    "disposition of another type": GOOD.replace(b"form-data;", b"attachment;"),
    "no name": GOOD.replace(b'name="f"; ', b""),
    "name twice": GOOD.replace(b'name="f"', b'name="f"; name="g"'),
    "filename twice": GOOD.replace(b'filename="a.txt"', b'filename="a"; filename="b"'),
    "folded field": GOOD.replace(b"form-data;", b"form-data;\r\n "),
    "bare lf in the head": GOOD.replace(b"octet-stream\r\n", b"octet-stream\n"),
    "bare lf after the boundary": GOOD.replace(b"XBOUNDARYX\r\n", b"XBOUNDARYX\n", 1),
    "bare lf before the boundary": GOOD.replace(b"\r\n--XBOUNDARYX--", b"\n--XBOUNDARYX--"),
    "bare cr before the boundary": GOOD.replace(b"\r\n--XBOUNDARYX--", b"\r--XBOUNDARYX--"),
    "boundary with a tail": GOOD.replace(b"data", b"data\r\n--XBOUNDARYXtail"),
    "boundary instead of a head": b"--XBOUNDARYX\r\n--XBOUNDARYX--\r\n",
    "head that ends in the boundary": HEAD + b"\r\n--XBOUNDARYX--\r\n",
    "body that ends in a head": HEAD,
    "second form after the first": GOOD + GOOD,
    "junk after the final dashes": GOOD[:-2] + b"junk",
    "nul in a field": GOOD.replace(b"Content-Type: ", b"Content-Type: \0"),
    "preamble without line break": b"xx" + GOOD,
}


@pytest.mark.parametrize("chunking", [lambda body: [body], one_by_one], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_body_is_refused(name: str, chunking: Callable[[bytes], list[bytes]]) -> None:
    assert inspect(chunking(MALFORMED[name])) == "bad_multipart"


WELL_FORMED: dict[str, tuple[bytes, Seen]] = {
    "no parts": (b"--XBOUNDARYX--\r\n", []),
    "no line break at the end": (GOOD[:-2], [("f", "a.txt", 4)]),
    "preamble": (b"for old mail readers\r\n" + GOOD, [("f", "a.txt", 4)]),
    "epilogue": (GOOD + b"for old\nmail readers", [("f", "a.txt", 4)]),
    "padding after the boundary": (GOOD.replace(b"XBOUNDARYX\r\n", b"XBOUNDARYX \t\r\n", 1), [("f", "a.txt", 4)]),
    "boundary in the middle of a line": (form((FILE, b"see --XBOUNDARYX there")), [("f", "a.txt", 22)]),
    "field and file": (form(("name=a", b"1"), (FILE, b"")), [("a", None, 1), ("f", "a.txt", 0)]),
    "empty file name": (form(('name="f"; filename=""', b"")), [("f", "", 0)]),
    "rfc 8187 name": (form(("name=f; filename=x; filename*=UTF-8''%e2%82%ac.txt", b"1")), [("f", "€.txt", 1)]),
    "quoted name": (form(('name="f"; filename="a\\"b;c\\\\d.txt"', b"1")), [("f", 'a"b;c\\d.txt', 1)]),
    "backslashes that escape nothing": (
        form(('name="f"; filename="C:\\dir\\x.txt"', b"1")),
        [("f", "C:\\dir\\x.txt", 1)],
    ),
    "semicolons in a name": (form(('name="f"; filename="a;b;c.txt"', b"1")), [("f", "a;b;c.txt", 1)]),
    "nested name": (form(('name="a[b][c]"', b"1")), [("a[b][c]", None, 1)]),
    "charset field": (form(("name=_charset_", b"utf-8"), (FILE, b"x")), [("_charset_", None, 5), ("f", "a.txt", 1)]),
    "multipart within": (
        GOOD.replace(b"application/octet-stream", b"multipart/mixed; boundary=inner"),
        [("f", "a.txt", 4)],
    ),
    "length of its own": (GOOD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n"), [("f", "a.txt", 4)]),
}


@pytest.mark.parametrize("chunking", [lambda body: [body], one_by_one], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_body_is_read(name: str, chunking: Callable[[bytes], list[bytes]]) -> None:
    body, expected = WELL_FORMED[name]
    assert inspect(chunking(body)) == expected


@pytest.mark.parametrize(
    ("limits", "body", "code"),
    [
        ({"max_parts": 2}, form(*[("name=a", b"")] * 3), "too_many_parts"),
        ({"max_part": 3}, GOOD, "part_too_large"),
        ({"max_field": 3}, form(("name=a", b"1234")), "field_too_large"),
        ({"max_part_headers": 60}, GOOD, "part_headers_too_large"),
        ({"max_part_headers": 60}, b"preamble\r\n" * 7 + GOOD, "part_headers_too_large"),
        ({}, GOOD.replace(b"application/octet-stream", b"x" * 8200), "part_headers_too_large"),
    ],
)
def test_limits_are_enforced(limits: dict[str, int], body: bytes, code: str) -> None:
    parsed = Limits(**limits)
    assert inspect([body], parsed) == code
    assert inspect(one_by_one(body), parsed) == code


def test_part_of_exactly_the_limit_is_accepted() -> None:
    assert inspect([GOOD], Limits(max_part=4)) == [("f", "a.txt", 4)]


def test_chunk_that_exceeds_a_limit_raises_and_the_one_before_does_not() -> None:
    inspector = PartInspector(BOUNDARY, Limits(max_part=10), "r", lambda part: None)
    start = GOOD[: GOOD.rindex(b"data")]
    inspector.feed_data(start + b"12345")
    with pytest.raises(Fault):
        inspector.feed_data(b"678901")


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; charset=utf-8; boundary="a b:c"', b"a b:c"),
        (
            "multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        ("multipart/form-data; Boundary=abc;", b"abc"),
    ],
)
def test_boundary_is_found(value: str, boundary: bytes) -> None:
    assert boundary_of(value) == boundary
    assert form_boundary_of(value.encode()) == boundary


@pytest.mark.parametrize("value", [b"", b"text/plain", b"multipart/mixed; boundary=abc", b"multipart/form-dat"])
def test_other_types_have_no_boundary_of_a_form(value: bytes) -> None:
    assert form_boundary_of(value) is None


@pytest.mark.parametrize("prefix", [b"multipart/form-data; boundary=", b"multipart/form-data;boundary="])
def test_plain_boundary_is_that_of_the_parser(prefix: bytes) -> None:
    for byte in range(256):
        value = prefix + b"a%cb" % byte
        try:
            expected = boundary_of(value.decode("latin-1"))
        except Fault:
            with pytest.raises(Fault):
                form_boundary_of(value)
        else:
            assert form_boundary_of(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "a" * 71,
        "multipart/form-data; boundary=a; boundary=b",
        'multipart/form-data; boundary="a "',
        'multipart/form-data; boundary="a',
        "multipart/form-data; boundary=a\x01b",
        "multipart/form-data; boundary*=utf-8''a",
    ],
)
def test_invalid_boundary_is_refused(value: str) -> None:
    with pytest.raises(Fault):
        boundary_of(value)


@pytest.mark.parametrize(
    "value", [None, "form-data; name=f; filename*=x", "form-data; name=f; filename*=utf-8''%ff", "form-data; =x"]
)
def test_invalid_disposition_is_refused(value: str | None) -> None:
    with pytest.raises(Fault):
        parse_disposition(value, 1)


#: Everything looks like the one-letter boundary, and nothing is one.
LOOK_ALIKES = b"y" + b"--x" * 20_000


@pytest.mark.parametrize("size", [1000, 60_000])
async def test_look_alikes_are_data_and_come_in_one_piece_per_chunk(size: int) -> None:
    """Each look-alike was a piece of its own: a form full of them stopped the event loop."""
    body = form(('name="f"; filename="a"', LOOK_ALIKES), boundary=b"x")
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    source = Chunks(chunks)
    content = FormContent(b"x", Limits(), "r", source)
    pieces = []
    async for part in FormParts(content, b"x", Limits(), "r"):
        while piece := await part.read():
            pieces.append(piece)
    assert b"".join(pieces) == LOOK_ALIKES
    assert len(pieces) <= 2 * len(chunks)


@pytest.mark.parametrize("line_break", [b"\r", b"\n"])
@pytest.mark.parametrize("size", [1, 1000, 60_000])
def test_boundary_after_a_bare_line_break_is_found_among_look_alikes(line_break: bytes, size: int) -> None:
    body = form(('name="f"', LOOK_ALIKES[:3000] + line_break + b"--x " + LOOK_ALIKES[:3000]), boundary=b"x")
    assert inspect((body[at : at + size] for at in range(0, len(body), size)), boundary=b"x") == "bad_multipart"


MANY_PARTS = form(*(('name="a"', b"") for _ in range(1000)))


async def test_turns_are_asked_for_within_a_chunk_of_many_parts() -> None:
    limits = Limits(max_parts=1000)
    source = Chunks([MANY_PARTS])
    content = FormContent(BOUNDARY, limits, "r", source)
    count = 0
    async for part in FormParts(content, BOUNDARY, limits, "r"):
        count += 1
        assert not await part.read()
    assert count == 1000
    assert source.turn_count >= 3 * count // TURN_TOKENS


@pytest.mark.parametrize("searched", [5, 40, 64])
@given(
    parts=st.lists(NEAR_DELIMITERS, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=3),
    tail=st.sampled_from([b"", b"\r\n", b"--XBOUNDARYX", b"\r\n--XBOUND"]),
)
def test_large_chunks_are_read_like_small_ones(parts: list[bytes], cuts: list[int], tail: bytes, searched: int) -> None:
    body = form(*(('name="f"; filename="a"', data) for data in parts)) + tail
    expected = inspect(one_by_one(body))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "SEARCHED_BYTES", searched)
        assert inspect(split_at(body, cuts)) == expected


async def test_large_chunk_without_a_boundary_is_returned_whole_and_searched_in_turns() -> None:
    large = bytes(2 * content.SEARCHED_BYTES)
    head, tail = form(('name="f"; filename="a"', b"start" + b"end")).split(b"startend")
    source = Chunks([head + b"start", large, large + b"end" + tail])
    pieces, turns = [], []
    async for part in FormParts(FormContent(BOUNDARY, Limits(), "r", source), BOUNDARY, Limits(), "r"):
        while piece := await part.read():
            pieces.append(piece)
            turns.append(source.turn_count)
    assert b"".join(pieces) == b"start" + large * 2 + b"end"
    assert pieces[1] is large
    assert turns[:2] == [0, 1]
    # That in which the form ends is divided: what else is looked for is not searched in turns.
    assert max(map(len, pieces[2:])) <= content.SEARCHED_BYTES


#: Ends of chunks after which a delimiter may go on; in a file of short lines every tenth chunk has one.
BEGUN_DELIMITERS = [b"\r", b"\n", b"\r\n", b"\r\n--XBOUND"]


@pytest.mark.parametrize("end", BEGUN_DELIMITERS)
@pytest.mark.parametrize("size", [100, 3 * content.SEARCHED_BYTES // 2])
async def test_chunk_after_what_may_begin_a_delimiter_is_not_copied(end: bytes, size: int) -> None:
    """The two were joined, and a large one divided before: three copies of it, in memory of their own."""
    next_chunk = bytes(size)
    head, tail = form(('name="f"; filename="a"', b"startend")).split(b"startend")
    source = Chunks([head + b"start", bytes(size) + end, next_chunk, b"end" + tail])
    pieces = []
    async for part in FormParts(FormContent(BOUNDARY, Limits(), "r", source), BOUNDARY, Limits(), "r"):
        while piece := await part.read():
            pieces.append(piece)
    assert pieces == [b"start", bytes(size), end, next_chunk, b"end"]
    assert pieces[3] is next_chunk


@pytest.mark.parametrize("end", [b"", *BEGUN_DELIMITERS])
async def test_chunk_that_is_skipped_is_freed_before_the_next_is_received(end: bytes) -> None:
    """One that ended in what may begin a delimiter was held, and the next was received into memory of its own."""
    head, tail = form(('name="f"; filename="a"', b"startend")).split(b"startend")
    source = LastChunk(itertools.chain([head + b"start"], (bytes(1000) + end for _ in range(3)), [b"end" + tail]))
    async for part in FormParts(FormContent(BOUNDARY, Limits(), "r", source), BOUNDARY, Limits(), "r"):
        await part.skip()
        assert part.size == len(b"startend") + 3 * len(bytes(1000) + end)
    # That of the source, and the argument of `getrefcount`.
    assert source.reference_counts[2:5] == [2, 2, 2]


def test_inspector_stops_within_a_chunk_of_many_parts() -> None:
    seen: list[int] = []
    inspector = PartInspector(BOUNDARY, Limits(max_parts=1000), "r", lambda part: seen.append(part.number))
    steps, chunk, before = 0, MANY_PARTS, 0
    while inspector.feed_data(chunk):
        steps, chunk = steps + 1, b""
        assert len(seen) - before <= TURN_TOKENS
        before = len(seen)
    inspector.finish()
    assert (len(seen), steps > 1000 // TURN_TOKENS) == (1000, True)
