"""Forms read at a glance: whatever is taken so, the reader takes with the same parts; plain forms are taken."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from gateway.config import Limits
from gateway.errors import Fault
from gateway.multipart import EndedPart, PartInspector
from gateway.multipart.quick import read_quickly

Parts = list[tuple[int, str, int]]
FIELD = b'Content-Disposition: form-data; name="a"\r\n\r\n'
FILE = (
    b'Content-Disposition: form-data; name="f"; filename="a b.txt"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n'
)


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"X") -> bytes:
    """Return a form of parts: head and data."""
    dashed = b"--" + boundary
    return b"".join(dashed + b"\r\n" + head + data + b"\r\n" for head, data in parts) + dashed + b"--\r\n"


def read(body: bytes, boundary: bytes, limits: Limits, *, length: int | None = None) -> Parts | str:
    """Push a body into an inspector as one chunk: return its parts, or the code of its fault."""
    seen: Parts = []

    def record(part: EndedPart) -> None:
        seen.append((part.number, part.kind, part.size))

    inspector = PartInspector(boundary, limits, "r", record, length=length)
    try:
        while inspector.feed_data(body):
            body = b""
        inspector.finish()
    except Fault as fault:
        return fault.kind.code
    finally:
        inspector.close()
    return seen


PLAIN = {
    "a field": form((FIELD, b"1")),
    "an empty field": form((FIELD, b"")),
    "a file": form((FILE, b"data")),
    "fields and files": form((FIELD, b"1"), (FILE, b"\r\n--\r\n"), (FIELD, b"\0\xff")),
    "no line break at the end": form((FILE, b"data"))[:-2],
    "a look-alike": form((FILE, b"--\r\n--Y--")),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_form_is_taken(name: str) -> None:
    body = PLAIN[name]
    taken = read_quickly(body, b"X", Limits())
    assert taken is not None
    assert [tuple(part) for part in taken] == read(body, b"X", Limits())
    assert read(body, b"X", Limits(), length=len(body)) == read(body, b"X", Limits())


LEFT_TO_THE_READER = {
    "preamble": b"hello\r\n" + form((FIELD, b"1")),
    "epilogue": form((FIELD, b"1")) + b"bye",
    "padding": form((FIELD, b"1")).replace(b"--X\r\n", b"--X \r\n"),
    "escape": form((FIELD.replace(b'"a"', b'"a\\"b"'), b"1")),
    "percent": form((FIELD.replace(b'"a"', b'"a%22b"'), b"1")),
    "token": form((FIELD.replace(b'"a"', b"a"), b"1")),
    "file name in UTF-8": form((FILE.replace(b"a b", "ä".encode()), b"1")),
    "another header": form((FILE.replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"), b"1")),
    "lower case": form((FILE.replace(b"Content-T", b"content-t"), b"1")),
    "boundary within a line": form((FIELD, b"see --X there")),
    "boundary after the head": b"--X\r\n" + FIELD + b"--X--\r\n",
    "boundary after LF": form((FIELD, b"1\n--X\r\n" + FIELD + b"2")),
    "boundary with a tail": form((FIELD, b"1\r\n--Xy")),
    "no part": b"--X--\r\n",
    "no end": form((FIELD, b"1"))[:-4],
    "second form": form((FIELD, b"1")) * 2,
    "empty": b"",
    "many parts": form(*[(FIELD, b"")] * 17),
}


@pytest.mark.parametrize("name", LEFT_TO_THE_READER)
def test_anything_else_is_left_to_the_reader(name: str) -> None:
    body = LEFT_TO_THE_READER[name]
    assert read_quickly(body, b"X", Limits()) is None
    assert read(body, b"X", Limits(), length=len(body)) == read(body, b"X", Limits())


@pytest.mark.parametrize(
    "limits",
    [{"max_parts": 1}, {"max_field": 3}, {"max_part": 3}, {"max_part_headers": len(FILE) - 1}],
    ids=lambda limits: next(iter(limits)),
)
def test_form_over_a_limit_is_left_to_the_reader_and_one_at_it_is_taken(limits: dict[str, int]) -> None:
    body = form((FIELD, b"1234"), (FILE, b"1234"))
    assert read_quickly(body, b"X", Limits(**limits)) is None
    at_it = Limits(**{name: limit + 1 for name, limit in limits.items()})
    assert read_quickly(body, b"X", at_it) is not None


def test_chunk_that_is_not_the_whole_body_is_left_to_the_reader() -> None:
    whole = form((FIELD, b"1"))
    body = whole + whole
    seen: list[int] = []
    inspector = PartInspector(b"X", Limits(), "r", lambda part: seen.append(part.number), length=len(body))
    assert not inspector.feed_data(whole)
    with pytest.raises(Fault):
        inspector.feed_data(whole)
    inspector.close()


_TOKENS = [b"\r\n", b"\r", b"\n", b"--", b"-", b"X", b"--X", b"\r\n--X", b"--X--", b'"', b"\\", b"%22", b" ", b"\t"]
_TOKENS += [b"; ", b": ", FIELD, FILE, b"\0", b"\xff", b'name="a"', b'; filename="b"', b"Content-Type: a/b\r\n", b"z"]
_BOUNDARIES = [b"X", b"-", b"--", b"X-", b"a b", b"----WebKitFormBoundary7MA4YWxkTrZu0gW"]
_LIMITS = [Limits(), Limits(max_parts=2, max_field=9, max_part=30, max_part_headers=150)]


def mutated_forms(seed: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield forms with up to four changes each, and their boundaries."""
    random_ = random.Random(seed)
    for _ in range(count):
        boundary = random_.choice(_BOUNDARIES)
        parts = [
            (random_.choice([FIELD, FILE]), b"".join(random_.choices(_TOKENS, k=random_.randrange(4))))
            for _ in range(random_.randrange(1, 4))
        ]
        body = form(*parts, boundary=boundary)
        for _ in range(random_.randrange(5)):
            at, to = random_.randrange(len(body) + 1), random_.randrange(9)
            token = random_.choice(_TOKENS).replace(b"X", boundary)
            body = body[:at] + random_.choice([b"", token, bytes([random_.randrange(256)])]) + body[at + to :]
        yield body, boundary


def check_mutations(seed: int, count: int) -> int:
    """Compare quick reading with the reader on mutated forms; return how many were taken."""
    taken = 0
    for number, (body, boundary) in enumerate(mutated_forms(seed, count)):
        limits = _LIMITS[number % 2]
        parts = read_quickly(body, boundary, limits)
        if parts is not None:
            taken += 1
            assert [tuple(part) for part in parts] == read(body, boundary, limits), (body, boundary)
    return taken


def test_what_is_taken_the_reader_takes_with_the_same_parts() -> None:
    assert check_mutations(seed=1, count=5000) > 500


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(2, 22))
def test_what_is_taken_of_millions_of_forms_the_reader_takes_with_the_same_parts(seed: int) -> None:
    assert check_mutations(seed, count=100_000) > 10_000
