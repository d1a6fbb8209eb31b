"""Paths: how other programs may read them."""

from __future__ import annotations

import pytest

from gateway.http.paths import climbs, has_readings, is_below, readings


@pytest.mark.parametrize("path", ["/", "/a/b.c", "/a%20b/%C3%A4", "/a..b/c.", "/a/"])
def test_plain_path_has_one_reading(path: str) -> None:
    assert not has_readings(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/pub/../x", ["/x"]),
        ("/pub/./x", ["/pub/x"]),
        ("/../../x", ["/x"]),
        ("/pub/..", ["/"]),
        ("/pub/.", ["/pub/"]),
        ("/pub/..;/x", ["/x"]),
        ("/pub;v=1/x;y", ["/pub/x"]),
        ("/pub//x", ["/pub/x"]),
        ("//pub/", ["/pub/"]),
        ("/pub\\..\\x", ["/x"]),
        ("/pub/.\t./x", ["/x"]),
        ("/pub/%2e%2e/x", ["/pub/%2e%2e/x", "/x"]),
        ("/pub/%252e%252E/x", ["/pub/%252e%252E/x", "/pub/%2e%2E/x", "/x"]),
        ("/pub%2fx", ["/pub%2fx", "/pub/x"]),
        ("/pub/..%5cx", ["/pub/..%5cx", "/x"]),
        ("/pub/..%00/x", ["/pub/..%00/x", "/x"]),
        ("/pub/%09../x", ["/pub/%09../x", "/x"]),
        ("/pub/..%3bv/x", ["/pub/..%3bv/x", "/x"]),
    ],
)
def test_readings_resolve_and_decode(path: str, expected: list[str]) -> None:
    assert has_readings(path)
    assert readings(path) == expected


def test_decoding_ends() -> None:
    assert len(readings("/" + "%25" * 3 + "2e")) <= 5
    assert len(readings("/%" + "25" * 50)) <= 5


def test_dot_segments_are_found_in_every_reading() -> None:
    for path in ("/a/../b", "/a/.", "/a/%2e%2e/b", "/a/%252e%252e", "/a/..;x/b", "/a\\..\\b", "/a/..%2fb"):
        assert climbs(path)
    for path in ("/a/..b", "/a/...", "/a%2fb", "/a;../b"):
        assert not climbs(path)


def test_prefix_ends_with_a_segment() -> None:
    assert is_below("/a", "/a")
    assert is_below("/a/b", "/a")
    assert is_below("/a/b", "/a/")
    assert is_below("/b", "/")
    assert not is_below("/ab", "/a")
