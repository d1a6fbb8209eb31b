"""The decoder of chunked bodies: reads of any size give the same data, and malformed input raises."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpResponseParser
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Fault, FaultKind
from gateway.http.chunked import STEP_WORK, ChunkedDecoder
from gateway.http.foreseen import MIN_FORESEEN_BYTES
from tests.peers import chunked

EXTENDED = b'5;a=b\r\nhello\r\n3;x;y="\\";"\r\n\r\n0\r\n00A\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nEmpty:\r\n\r\n'


def decode(wire: bytes, size: int) -> tuple[bytes, bool]:
    decoder = ChunkedDecoder()
    data = b"".join(decode_all(decoder, wire[at : at + size]) for at in range(0, len(wire), size))
    assert decoder.decoded_bytes == len(data)
    return data, decoder.is_ended


def decode_all(decoder: ChunkedDecoder, received: bytes) -> bytes:
    data = decoder.decode(received)
    while decoder.has_more:
        data += decoder.decode(b"")
    return data


def receive(decoder: ChunkedDecoder, wire: bytes, cuts: Iterable[int], most: int) -> tuple[bytes, int]:
    """Receive the pieces between cuts as a socket is read; return the data, and how many came as foreseen."""
    data, at, count = b"", 0, 0
    for cut in [*cuts, len(wire)]:
        end = min(at + cut, len(wire))
        while at < end and not decoder.is_ended:
            foreseen = decoder.foresee(most)
            if foreseen is None:
                taken = min(end - at, most)
                data += decode_all(decoder, wire[at : at + taken])
                at += taken
                continue
            count += 1
            received = 0
            for buffer in foreseen.buffers:
                piece = wire[at : min(at + len(buffer), end)]
                buffer[: len(piece)] = piece
                at, received = at + len(piece), received + len(piece)
            data += decoder.take(foreseen, received)
            while decoder.has_more:
                data += decoder.decode(b"")
    assert decoder.decoded_bytes == len(data)
    return data, count


SIZES = st.sampled_from([MIN_FORESEEN_BYTES, MIN_FORESEEN_BYTES + 1, 3 * MIN_FORESEEN_BYTES, 5])
CUTS = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 200_000)), max_size=20)


@settings(deadline=None)
@given(
    runs=st.lists(st.tuples(SIZES, st.integers(1, 6)), min_size=1, max_size=5),
    cuts=CUTS,
    rest=st.binary(max_size=20),
    most=st.sampled_from([2**16, 2**17, 2**18]),
    extension=st.sampled_from([b"", b";a=b"]),
)
def test_chunks_received_where_they_were_foreseen_give_the_same_data(
    runs: list[tuple[int, int]], cuts: list[int], rest: bytes, most: int, extension: bytes
) -> None:
    generator = random.Random(1)
    pieces = [generator.randbytes(size) for size, count in runs for _ in range(count)]
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n\r\n"
    decoder = ChunkedDecoder()
    assert receive(decoder, body + rest, cuts, most)[0] == b"".join(pieces)
    assert decoder.is_ended
    assert rest.startswith(decoder.rest)


@settings(deadline=None)
@given(at=st.integers(0, 30), cuts=CUTS, changed=st.sampled_from(b"\r\n0;4fg \x00"), which=st.integers(2, 5))
def test_line_that_was_foreseen_and_comes_changed_is_decoded_like_any_other(
    at: int, cuts: list[int], changed: int, which: int
) -> None:
    piece = b"x" * MIN_FORESEEN_BYTES
    wire = bytearray(chunked(*[piece] * 6))
    wire[which * (len(piece) + 8) - 2 + at % 8] = changed
    outcomes: list[tuple[bytes, bool] | FaultKind] = []
    for may_foresee in (False, True):
        decoder = ChunkedDecoder()
        try:
            data = receive(decoder, bytes(wire), cuts, 2**17)[0] if may_foresee else decode_all(decoder, bytes(wire))
            outcomes.append((data, decoder.is_ended))
        except Fault as fault:
            outcomes.append(fault.kind)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("begun", [0, 1, 7])
def test_data_is_the_same_wherever_a_receive_ends(begun: int) -> None:
    """Within the data of a chunk, at its end, in a line, or after it."""
    size, line = MIN_FORESEEN_BYTES, b"\r\n%x\r\n" % MIN_FORESEEN_BYTES
    generator = random.Random(1)
    pieces = [generator.randbytes(size) for _ in range(5)]
    wire = line.join([b"", *pieces])[2:] + b"\r\n0\r\n\r\n"
    first = 2 * (len(line) + size) - 2 + begun
    for at in (-1, 0, 1, size - 1, size, size + 1, size + len(line), 2 * size):
        decoder = ChunkedDecoder()
        data, count = receive(decoder, wire, [first, len(line) - begun + at], 4 * size)
        assert (data, decoder.is_ended, count > 0) == (b"".join(pieces), True, True)


def test_room_for_foreseen_chunks_may_end_with_a_chunk() -> None:
    size, line = MIN_FORESEEN_BYTES, b"\r\n%x\r\n" % MIN_FORESEEN_BYTES
    decoder = ChunkedDecoder()
    decoder.decode((line + bytes(size))[2:] + line + bytes(size))
    foreseen = decoder.foresee(2 * size)
    assert foreseen is not None
    assert [len(buffer) for buffer in foreseen.buffers] == [0, len(line), size, len(line), size]
    for buffer in foreseen.buffers[1::2]:
        buffer[:] = line
    for buffer in foreseen.buffers[2::2]:
        buffer[:] = b"x" * size
    assert decoder.take(foreseen, 2 * (len(line) + size)) == b"x" * 2 * size
    assert decoder.decode(b"\r\n0\r\n\r\n") == b""
    assert decoder.is_ended


def test_no_chunk_is_foreseen_where_the_line_of_another_has_begun() -> None:
    decoder, chunk = ChunkedDecoder(), b"8000\r\n%b\r\n" % bytes(2**15)
    decoder.decode(chunk * 2 + b"8")
    assert decoder.foresee(2**20) is not None
    decoder = ChunkedDecoder()
    decoder.decode(chunk * 2 + b"7")
    assert decoder.foresee(2**20) is None
    assert decoder.decode(b"\r\n1234567\r\n0\r\n\r\n") == b"1234567"
    assert decoder.is_ended


def test_chunks_are_foreseen_after_two_of_one_size_until_another_comes() -> None:
    decoder = ChunkedDecoder()
    piece = b"x" * MIN_FORESEEN_BYTES
    chunk = chunked(piece)[:-5]
    decoder.decode(chunk)
    assert decoder.foresee(2**20) is None
    decoder.decode(chunk)
    assert decoder.foresee(2**20) is not None
    decoder.decode(b"5\r\nhello\r\n")
    assert decoder.foresee(2**20) is None
    data, count = receive(ChunkedDecoder(), chunked(*[piece] * 600), [], 2**17)
    assert data == piece * 600
    assert count == 75


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_extensions_leading_zeros_and_trailers_are_left_out(size: int) -> None:
    assert decode(EXTENDED, size) == (b"hello\r\n00123456789", True)


@given(pieces=st.lists(st.binary(min_size=1, max_size=300)), cuts=st.lists(st.integers(1, 400)), rest=st.binary())
def test_reads_of_any_size_give_the_same_data(pieces: list[bytes], cuts: list[int], rest: bytes) -> None:
    wire = chunked(*pieces) + rest
    decoder = ChunkedDecoder()
    data, at = b"", 0
    for cut in [*cuts, len(wire)]:
        data += decode_all(decoder, wire[at : at + cut])
        at += cut
    assert (data, decoder.is_ended) == (b"".join(pieces), True)


@given(pieces=st.lists(st.binary(min_size=1, max_size=50), min_size=1), lost=st.integers(1, 30))
def test_truncated_body_is_never_complete(pieces: list[bytes], lost: int) -> None:
    decoder = ChunkedDecoder()
    decoder.decode(chunked(*pieces)[:-lost])
    assert not decoder.is_ended


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 10_000])
@pytest.mark.parametrize("sizes", [(1,), (15,), (2, 1, 1, 1, 16, 16, 1, 0xAB), (300, 1)])
def test_runs_of_small_chunks_give_the_same_data(sizes: tuple[int, ...], size: int) -> None:
    data = random.Random(1).randbytes(400 * sum(sizes))
    pieces, at = [], 0
    for length in sizes * 400:
        pieces.append(data[at : at + length])
        at += length
    assert decode(chunked(*pieces), size) == (data, True)
    assert decode(chunked(*pieces).replace(b"\r\nab\r\n", b"\r\nAB\r\n"), size) == (data, True)


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (15, 15, 1)])
def test_a_call_decodes_a_bounded_number_of_chunks(sizes: tuple[int, ...]) -> None:
    """A receive full of one-byte chunks stopped the event loop."""
    data = [b"x" * size for size in sizes * 2 * STEP_WORK]
    decoder = ChunkedDecoder()
    decoded = [decoder.decode(chunked(*data))]
    while decoder.has_more:
        decoded.append(decoder.decode(b""))
    assert max(map(len, decoded)) <= 2 * STEP_WORK * max(sizes)
    assert len(decoded) > 2
    assert (b"".join(decoded), decoder.is_ended) == (b"".join(data), True)


def test_bytes_after_the_body_are_kept() -> None:
    decoder = ChunkedDecoder()
    assert decode_all(decoder, chunked(b"abc") + b"GET /") == b"abc"
    assert decoder.rest == b"GET /"


def test_lenient_decoder_accepts_what_servers_were_seen_to_send() -> None:
    decoder = ChunkedDecoder(is_lenient=True)
    wire = b"5 \r\nhello\r\n1\t; any thing\r\nx\r\n0\r\nX : 1\r\n folded\r\n\r\n"
    data = b"".join(decode_all(decoder, wire[at : at + 1]) for at in range(len(wire)))
    assert (data, decoder.is_ended) == (b"hellox", True)


@pytest.mark.parametrize(
    "wire",
    [
        b"j",
        b"-",
        b"5 ",
        b"5g",
        b"5\r\nhellox",
        b"5\r\nhello\n",
        b"5\rx",
        b"5;\r",
        b"5;a ",
        b'5;a="b" ',
        b"11111111111111111",
        b"0\r\n ",
        b"0\r\na ",
        b"0\r\nContent-Length:",
        b"0\r\nTRANSFER-ENCODING:",
    ],
)
def test_bytes_that_cannot_become_valid_are_refused_at_once(wire: bytes) -> None:
    """Without a line break, they were refused only when the idle timeout ran out."""
    decode(wire[:-1], 1)
    with pytest.raises(Fault):
        decode(wire, 1)


#: What a chunked body is made of, and what looks like it.
ELEMENTS = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'\r\n\t\x00\x80 015axX;:=-+"\\'),
        *(b"\r\n", b"hello", b"0x", b";a=b", b';a="b"', b"0" * 20, b"f" * 16, b"1\r\nx\r\n", b"5\r\nhello\r\n"),
        *(b"0\r\n", b"0\r\n\r\n", b"A: b\r\n", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"),
    ]
)


class Llhttp:
    """The parser of aiohttp, as a decoder of chunked bodies."""

    def __init__(self, *, is_response: bool) -> None:
        loop = asyncio.new_event_loop()
        protocol = BaseProtocol(loop)
        kind: Any = HttpResponseParser if is_response else HttpRequestParser
        self._parser = protocol._parser = kind(protocol, loop, 2**20)
        line = b"HTTP/1.1 200 OK" if is_response else b"POST / HTTP/1.1\r\nHost: a"
        messages, _, _ = self._parser.feed_data(line + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._stream = messages[0][1]
        loop.close()

    def decode(self, wire: bytes) -> tuple[bytes, bool] | None:
        """Return the data, and whether the body ended; None if it is refused."""
        try:
            self._parser.feed_data(wire)
        except HttpProcessingError:
            # Something after the end may be what it refuses.
            return (b"".join(self._stream._buffer), True) if self._stream.is_eof() else None
        return b"".join(self._stream._buffer), self._stream.is_eof()


@pytest.mark.parametrize("is_response", [False, True])
@settings(max_examples=300)
@given(elements=st.lists(ELEMENTS, max_size=30))
def test_decoder_and_the_parser_of_aiohttp_agree(elements: list[bytes], is_response: bool) -> None:
    wire = b"".join(elements)
    decoder = ChunkedDecoder(is_lenient=is_response)
    expected = Llhttp(is_response=is_response).decode(wire)
    try:
        found = decode_all(decoder, wire), decoder.is_ended
    except Fault:
        # It accepts extensions that the RFC does not, such as one without a name; in responses, line breaks without CR.
        assert expected is None or is_response or b";" in wire
        return
    if is_response:
        # More lenient than it about extensions and trailers, never about data.
        assert expected in (None, found)
    else:
        assert found == expected


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


@pytest.mark.parametrize("foreseen_count", [0, 1, 32, 63])
def test_foreseen_chunks_that_come_otherwise_are_held_no_more_than_twice(foreseen_count: int) -> None:
    """A room of 2 MiB took 6 MiB, and more, where the first line was another one."""
    most, size, other = 2**21, 2**15, 2**15 - 1
    decoder = ChunkedDecoder()
    line = b"%x\r\n" % size
    decoder.decode((line + bytes(size) + b"\r\n") * 2)
    wire = (line + b"a" * size + b"\r\n") * foreseen_count + (b"%x\r\n" % other + b"b" * other + b"\r\n") * 65
    view, received = memoryview(wire), 0
    tracemalloc.start()
    try:
        foreseen = decoder.foresee(most)
        assert foreseen is not None
        for buffer in foreseen.buffers:
            buffer[:] = view[received : received + len(buffer)]
            received += len(buffer)
        data = [decoder.take(foreseen, received)]
        del foreseen
        while decoder.has_more:
            data.append(decoder.decode(b""))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert b"".join(data) == (b"a" * size * foreseen_count + b"b" * most)[: decoder.decoded_bytes - 2 * size]
    assert most - size <= sum(map(len, data)) <= most
    assert peak < 2 * most + 2**17
