"""The search for a boundary: the C library's and Python's find the same, in data made to mislead or to slow it."""

from __future__ import annotations

import ctypes
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.multipart import search
from gateway.multipart.search import MIN_MEMMEM_BYTES, has_boundary, load_memmem
from tests.multipart.test_reader import inspect
from tests.peers import form

SIZE = 3 * MIN_MEMMEM_BYTES
BOUNDARIES = {
    "one letter": b"x",
    "curl": b"------------------------d74496d66958873e",
    "only dashes": b"-" * 70,
    "one letter repeated": b"x" * 69 + b"y",
    "periodic": b"ab" * 35,
}


def near_boundaries(boundary: bytes) -> dict[str, bytes]:
    """Return data without a delimiter on which searches are slow or go wrong."""
    dashed = b"--" + boundary
    pieces = {
        "all but the last byte": dashed[:-1] + b"z",
        "all but the first byte": b"z" + dashed[1:],
        "all but one in the middle": dashed[: len(dashed) // 2] + b"z" + dashed[len(dashed) // 2 + 1 :],
        "a delimiter of another form": b"\r\n" + dashed[:-1] + b"z\r\n",
        "dashes": b"-",
        "zeros": b"\0",
        "line breaks": b"\r\n",
    }
    return {
        name: data
        for name, piece in pieces.items()
        if dashed not in (data := (piece * (SIZE // len(piece) + 1))[:SIZE]) + b"--"
    }


CASES = [
    pytest.param(boundary, data, id=f"{name}, {kind}")
    for name, boundary in BOUNDARIES.items()
    for kind, data in near_boundaries(boundary).items()
]


@pytest.fixture(params=["libc", "python"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(search, "_MEMMEM", None)
    elif load_memmem() is None:
        pytest.skip("this C library has no memmem")


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("boundary", "data"), CASES)
def test_near_boundaries_are_no_boundary_and_one_among_them_is_found(boundary: bytes, data: bytes) -> None:
    dashed = b"--" + boundary
    assert not has_boundary(data, dashed, 0)
    for at in (0, 1, SIZE // 2, SIZE - 1, SIZE):
        assert has_boundary(data[:at] + dashed + data[at:], dashed, 0)
    # Cut at the end of the chunk.
    assert not has_boundary(b"\0" * SIZE + dashed[:-1], dashed, 0)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(("boundary", "data"), CASES)
def test_file_of_near_boundaries_is_read_whole_and_its_end_is_found(boundary: bytes, data: bytes) -> None:
    body = form(('name="f"; filename="a"', data), boundary=boundary)
    for size in (len(body), MIN_MEMMEM_BYTES, MIN_MEMMEM_BYTES + 1):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        assert inspect(pieces, boundary=boundary) == [("f", "a", len(data))]


@given(
    pieces=st.lists(
        st.sampled_from([b"\0", b"-", b"--", b"ab", b"aba", b"\r\n", b"--aba", b"b" * 40_000]), max_size=12
    ),
    boundary=st.sampled_from([b"--ab", b"--aba", b"--abab", b"-----", b"\0\0"]),
    at=st.integers(0, 50),
    cut=st.integers(0, 50),
)
def test_both_searches_agree(pieces: list[bytes], boundary: bytes, at: int, cut: int) -> None:
    chunk = b"".join(pieces)
    assert has_boundary(chunk, boundary, at) is (chunk.find(boundary, at) >= 0)
    end = max(0, len(chunk) - cut)
    assert has_boundary(chunk, boundary, at, end) is (chunk.find(boundary, at, end) >= 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a C library whose memmem is known to be fast")
def test_memmem_is_used_where_the_c_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if load_memmem() is None:
        pytest.skip("this C library has no memmem")
    calls = []

    def memmem(chunk: bytes | int, size: int, boundary: bytes, length: int) -> int | None:
        calls.append((size, length))
        text = ctypes.string_at(chunk, size) if isinstance(chunk, int) else chunk[:size]
        return 1 if boundary[:length] in text else None

    monkeypatch.setattr(search, "_MEMMEM", memmem)
    assert has_boundary(b"\0" * SIZE + b"--x", b"--x", 0)
    assert not has_boundary(b"\0" * (MIN_MEMMEM_BYTES - 1), b"--x", 0)
    assert has_boundary(b"-" + b"\0" * SIZE + b"--x", b"--x", 1)
    assert not has_boundary(b"--x" + b"\0" * SIZE, b"--x", 1)
    assert not has_boundary(b"\0" * SIZE + b"--x", b"--x", 1, SIZE + 2)
    assert not has_boundary(b"\0" * SIZE, b"--x", SIZE - MIN_MEMMEM_BYTES + 1)
    assert has_boundary(b"\0" * SIZE + b"--x", b"--x", 0, SIZE + 5)
    assert calls == [(SIZE + 3, 3), (SIZE + 3, 3), (SIZE + 2, 3), (SIZE + 1, 3), (SIZE + 3, 3)]


def test_system_without_memmem_is_searched_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "PyDLL", lambda _: object())
    assert load_memmem() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert load_memmem() is None
