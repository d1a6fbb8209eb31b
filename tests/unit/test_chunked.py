"""The decoder of chunked bodies: reads of any size give the same data, and malformed input raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Fault, FaultKind
from gateway.http.chunked import ChunkedDecoder
from tests.peers import chunked

EXTENDED = b"5;a=b\r\nhello\r\n3 ; x\r\n\r\n0\r\n00A\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nEmpty:\r\n\r\n"


def decode(wire: bytes, size: int) -> tuple[bytes, bool]:
    decoder = ChunkedDecoder()
    data = b"".join(decoder.decode(wire[at : at + size]) for at in range(0, len(wire), size))
    assert decoder.decoded_bytes == len(data)
    return data, decoder.is_ended


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_extensions_leading_zeros_and_trailers_are_left_out(size: int) -> None:
    assert decode(EXTENDED, size) == (b"hello\r\n00123456789", True)


@given(pieces=st.lists(st.binary(min_size=1, max_size=300)), cuts=st.lists(st.integers(1, 400)), rest=st.binary())
def test_reads_of_any_size_give_the_same_data(pieces: list[bytes], cuts: list[int], rest: bytes) -> None:
    wire = chunked(*pieces) + rest
    decoder = ChunkedDecoder()
    data, at = b"", 0
    for cut in [*cuts, len(wire)]:
        data += decoder.decode(wire[at : at + cut])
        at += cut
    assert (data, decoder.is_ended) == (b"".join(pieces), True)


@given(pieces=st.lists(st.binary(min_size=1, max_size=50), min_size=1), lost=st.integers(1, 30))
def test_truncated_body_is_never_complete(pieces: list[bytes], lost: int) -> None:
    decoder = ChunkedDecoder()
    decoder.decode(chunked(*pieces)[:-lost])
    assert not decoder.is_ended


@pytest.mark.parametrize(
    "wire",
    [
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"5_0\r\nhello",
        b"\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;" + b"a" * 5000 + b"\r\n",
        b"5;" + b"a" * 5000,
        b"1" * 17 + b"\r\n",
        b"0\r\nno field\r\n\r\n",
        b"0\r\nX: a\n\r\n",
        b"0\r\n" + b"X: 12345678\r\n" * 2000 + b"\r\n",
        b"0\r\nX: " + b"a" * 20000,
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_malformed_framing_is_refused(wire: bytes, size: int) -> None:
    with pytest.raises(Fault) as caught:
        decode(wire, size)
    assert caught.value.kind is FaultKind.BAD_FRAMING
