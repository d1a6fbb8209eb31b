"""How request bodies are framed: by their length where it is known and wanted, chunked, or refused."""

from __future__ import annotations

import pytest

from gateway.config import FramingMode
from gateway.errors import Fault, FaultKind
from gateway.http.framing import Framing, choose_framing


@pytest.mark.parametrize(
    ("mode", "length", "expected"),
    [
        ("auto", 0, Framing(0)),
        ("auto", 10, Framing(10)),
        ("auto", None, Framing(None)),
        ("chunked", 10, Framing(None)),
        ("chunked", None, Framing(None)),
        ("length_required", 10, Framing(10)),
    ],
)
def test_framing_follows_the_mode_and_the_length(mode: FramingMode, length: int | None, expected: Framing) -> None:
    assert choose_framing(mode, length) == expected


def test_unknown_length_is_refused_where_the_upstream_takes_no_chunks() -> None:
    with pytest.raises(Fault) as caught:
        choose_framing("length_required", None)
    assert caught.value.kind is FaultKind.LENGTH_REQUIRED


def test_framing_has_one_header() -> None:
    assert (Framing(0).is_chunked, Framing(0).line) == (False, b"Content-Length: 0\r\n")
    assert (Framing(None).is_chunked, Framing(None).line) == (True, b"Transfer-Encoding: chunked\r\n")
