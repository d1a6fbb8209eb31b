"""Headers: which heads are refused, what is sent on in either direction, whose X-Forwarded-* is believed."""

from __future__ import annotations

import ipaddress
import re

import pytest

from gateway.errors import Fault, FaultKind
from gateway.http.client import Client, is_trusted, peer_address
from gateway.http.headers import (
    _NAMES,
    Header,
    ReceivedHeaders,
    Trace,
    default_lines,
    encode_lines,
    end_to_end,
    request_lines,
    response_lines,
    trace_context,
)
from gateway.http.request_head import Target, check_message, check_target


def test_proxies_are_trusted_by_network() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")]
    assert is_trusted("10.1.2.3", networks)
    assert is_trusted("fe80::1", networks)
    assert not is_trusted("11.0.0.1", networks)
    assert not is_trusted("", networks)
    assert not is_trusted("10.1.2.3", [])


def test_peer_address_is_without_zone_and_ipv4_as_such() -> None:
    assert peer_address("10.1.2.3") == "10.1.2.3"
    assert peer_address("::ffff:10.1.2.3") == "10.1.2.3"
    assert peer_address("fe80::1%eth0") == "fe80::1"
    assert peer_address("2001:DB8::1") == "2001:db8::1"


def test_connection_header_cannot_remove_the_framing() -> None:
    fields = [(b"Connection", b"content-length, x-a"), (b"Content-Length", b"3"), (b"X-A", b"1"), (b"TE", b"x")]
    assert end_to_end(ReceivedHeaders(fields)) == [(b"Content-Length", b"3")]


def check_head(version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> Target:
    check_message(version, method, target, headers)
    return check_target(version, method, target, headers)


@pytest.mark.parametrize(
    ("version", "method", "target", "fields", "kind"),
    [
        ((2, 0), "GET", "/", [], FaultKind.BAD_REQUEST),
        ((1, 1), "TRACE", "/", [], FaultKind.METHOD_NOT_ALLOWED),
        ((1, 1), "GET", "/", [(b"A", b"x" * 70_000)], FaultKind.HEAD_TOO_LARGE),
        ((1, 1), "GET", "/", [], FaultKind.BAD_HOST),
        ((1, 1), "GET", "/", [(b"Host", b"[::x]")], FaultKind.BAD_HOST),
        ((1, 1), "GET", "/", [(b"Host", b"[1::2::3]")], FaultKind.BAD_HOST),
        ((1, 1), "GET", "/#f", [(b"Host", b"h")], FaultKind.BAD_TARGET),
        ((1, 1), "GET", "x", [(b"Host", b"h")], FaultKind.BAD_TARGET),
        ((1, 1), "GET", "http:///x", [(b"Host", b"h")], FaultKind.BAD_TARGET),
        ((1, 1), "POST", "/", [(b"Host", b"h"), (b"Transfer-Encoding", b"gzip")], FaultKind.BAD_FRAMING),
        ((1, 0), "POST", "/", [(b"Transfer-Encoding", b"chunked")], FaultKind.BAD_FRAMING),
        (
            (1, 1),
            "POST",
            "/",
            [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")],
            FaultKind.BAD_FRAMING,
        ),
    ],
)
def test_invalid_head_is_refused(
    version: tuple[int, int], method: str, target: str, fields: list[tuple[bytes, bytes]], kind: FaultKind
) -> None:
    with pytest.raises(Fault) as caught:
        check_head(version, method, target, ReceivedHeaders(fields))
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("method", "target", "extra"),
    [("OPTIONS", "*", []), ("POST", "/a?b", [(b"Transfer-Encoding", b"Chunked ")]), ("GET", "/", [])],
)
def test_valid_head_is_accepted(method: str, target: str, extra: list[tuple[bytes, bytes]]) -> None:
    found = check_head((1, 1), method, target, ReceivedHeaders([(b"Host", b"H:80"), *extra]))
    assert (found.path + found.query, found.host) == (target, "h")


def test_host_is_taken_from_an_absolute_target() -> None:
    target = check_head((1, 1), "GET", "HTTP://Real.Example:81?q", ReceivedHeaders([(b"Host", b"other")]))
    assert (target.path, target.query, target.host, target.authority) == ("/", "?q", "real.example", b"Real.Example:81")


PARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


HOST = b"gw:80"


def client(*, is_trusted: bool) -> Client:
    return Client("::1", b"http", [ipaddress.ip_network("::1")] if is_trusted else [])


def pairs(lines: bytes) -> list[Header]:
    """Return the names and values of header lines in wire form."""
    *each, rest = lines.split(b"\r\n")
    assert rest == b""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in each)]


def request_pairs(headers: ReceivedHeaders, sender: Client, authority: bytes, trace: Trace) -> list[Header]:
    return pairs(request_lines(headers, sender, authority, trace))


def response_pairs(headers: ReceivedHeaders, trace: Trace) -> list[Header]:
    return pairs(response_lines(headers, trace))


def test_forwarding_headers_of_an_untrusted_client_are_replaced() -> None:
    fields = [
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"X_Forwarded_For", b"6.6.6.6"),
        (b"Forwarded", b"for=6.6.6.6"),
        (b"tracestate", b"x=y"),
        (b"X-Real-IP", b"6.6.6.6"),
        (b"X_Real_IP", b"6.6.6.6"),
        (b"X-Forwarded-Prefix", b"/admin"),
        (b"X-Forwarded-Port", b"443"),
        (b"Host", b"gw"),
        (b"Expect", b"100-continue"),
        (b"A_B", b"kept"),
    ]
    named = ReceivedHeaders([*fields, (b"X-Request-Id", b"mine"), (b"traceparent", PARENT)])
    trace = trace_context(named, is_trusted=False)
    assert trace.request_id != b"mine"
    sent = ReceivedHeaders(request_pairs(ReceivedHeaders(fields), client(is_trusted=False), HOST, trace))
    assert [name for name, _ in sent] == [
        b"A_B",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Host",
        b"Forwarded",
        b"X-Request-Id",
        b"traceparent",
        b"Via",
    ]
    assert sent.all(b"x-forwarded-for") == [b"::1"]
    assert sent.all(b"forwarded") == [b'for="[::1]";host="gw:80";proto=http']


def test_forwarding_headers_of_a_trusted_proxy_are_extended() -> None:
    fields = [
        (b"X-Forwarded-For", b"6.6.6.6"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=6.6.6.6"),
        (b"X-Request-Id", b"mine"),
        (b"traceparent", PARENT),
        (b"tracestate", b"x=y"),
        (b"X-Real-IP", b"6.6.6.6"),
    ]
    trace = trace_context(ReceivedHeaders(fields), is_trusted=True)
    sent = ReceivedHeaders(request_pairs(ReceivedHeaders(fields), client(is_trusted=True), HOST, trace))
    assert sent.all(b"x-forwarded-for") == [b"6.6.6.6, ::1"]
    assert sent.all(b"x-forwarded-proto") == [b"https"]
    assert sent.all(b"x-real-ip") == [b"6.6.6.6"]
    assert sent.all(b"x-forwarded-host") == [b"gw:80"]
    assert sent.all(b"forwarded")[0].startswith(b"for=6.6.6.6, for=")
    assert sent.all(b"x-request-id") == [b"mine"]
    assert sent.all(b"tracestate") == [b"x=y"]
    assert sent.all(b"traceparent")[0][:36] == PARENT[:36]
    assert sent.all(b"traceparent")[0] != PARENT


def test_headers_listed_in_connection_are_removed_in_both_directions() -> None:
    fields = ReceivedHeaders(
        [
            (b"Connection", b"X-A, date"),
            (b"X-a", b"1"),
            (b"Date", b"d"),
            (b"Connection", b"x-request-id"),
            (b"X-B", b"2"),
        ]
    )
    trace = trace_context(fields, is_trusted=False)
    sent = [name for name, _ in request_pairs(fields, client(is_trusted=False), HOST, trace)]
    assert sent[0] == b"X-B"
    assert b"X-a" not in sent
    answered = ReceivedHeaders(response_pairs(fields, trace))
    assert [name.key for name in answered.names] == [b"x-b", b"date", b"via", b"x-request-id"]
    assert answered.first(b"date") != b"d"


@pytest.mark.parametrize("request_id", [b"", b"a b", b"x" * 129, b"a\xff"])
def test_invalid_request_id_is_replaced(request_id: bytes) -> None:
    assert trace_context(ReceivedHeaders([(b"X-Request-Id", request_id)]), is_trusted=True).request_id != request_id


def test_response_gets_date_and_request_id_only_if_it_has_none() -> None:
    trace = trace_context(ReceivedHeaders([]), is_trusted=False)
    bare = response_pairs(ReceivedHeaders([(b"Content-Length", b"3"), (b"A", b"b")]), trace)
    assert [name for name, _ in bare] == [b"A", b"Date", b"Via", b"X-Request-Id"]
    full = response_pairs(ReceivedHeaders([(b"date", b"today"), (b"x-request-id", b"theirs")]), trace)
    assert [name for name, _ in full] == [b"date", b"x-request-id", b"Via"]
    assert ReceivedHeaders(pairs(default_lines(trace))).all(b"x-request-id") == [trace.request_id]


def test_lines_are_encoded_for_the_wire() -> None:
    assert encode_lines([(b"A", b"1"), (b"a", b"\xff")]) == b"A: 1\r\na: \xff\r\n"


def test_forwarding_headers_are_those_of_the_host_that_is_asked_for() -> None:
    known, received = client(is_trusted=False), ReceivedHeaders([])
    found = [dict(pairs(known.forwarding_lines(received, host)))[b"Forwarded"] for host in (b"a", b"a", b'b"')]
    assert found == [b'for="[::1]";host="%b";proto=http' % host for host in (b"a", b"a", b"b")]


def test_invented_names_are_not_remembered_for_ever_and_are_treated_alike() -> None:
    trace = trace_context(ReceivedHeaders([]), is_trusted=False)
    for number in range(3000):
        name = b"X-%d" % number
        assert (name, b"1") in response_pairs(ReceivedHeaders([(name, b"1")]), trace)
    assert len(_NAMES) <= 1024
    long = b"x_forwarded_for" + b"_" * 50
    assert (long, b"1") in request_pairs(ReceivedHeaders([(long, b"1")]), client(is_trusted=False), HOST, trace)
    assert long not in _NAMES


@pytest.mark.parametrize("host", [b"gw", b"GW:80", b"h" * 300], ids=["name", "port", "long"])
def test_host_is_found_alike_each_time(host: bytes) -> None:
    for _ in range(2):
        target = check_head((1, 1), "GET", "/", ReceivedHeaders([(b"Host", host)]))
        assert target.host == host.partition(b":")[0].decode().lower()


@pytest.mark.parametrize("option", [b"keep-alive", b"Keep-Alive", b"KEEP-ALIVE"])
def test_connection_that_names_no_header_removes_only_itself(option: bytes) -> None:
    received = ReceivedHeaders([(b"Connection", option), (b"Date", b"today"), (b"X-Request-Id", b"a"), (b"X-A", b"b")])
    trace = trace_context(received, is_trusted=False)
    assert [name for name, _ in response_pairs(received, trace)] == [b"Date", b"X-Request-Id", b"X-A", b"Via"]


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_head_that_is_received_again_is_sent_on_by_who_sent_it(order: tuple[bool, bool]) -> None:
    shared = ReceivedHeaders([(b"X-Real-IP", b"6.6.6.6"), (b"tracestate", b"x=y"), (b"A", b"b")])
    kept = {True: [(b"X-Real-IP", b"6.6.6.6"), (b"A", b"b")], False: [(b"A", b"b")]}
    for trust in (*order, *order):
        trace = trace_context(shared, is_trusted=trust)
        sent = request_pairs(shared, client(is_trusted=trust), HOST, trace)
        assert sent[:-7] == kept[trust]
        assert (b"X-Request-Id", trace.request_id) in sent
        assert (b"traceparent", trace.traceparent) in sent
        assert response_pairs(shared, trace)[-1] == (b"X-Request-Id", trace.request_id)


def test_client_that_is_trusted_has_its_own_id_or_its_own_trace_continued() -> None:
    only_id = trace_context(ReceivedHeaders([(b"X-Request-Id", b"mine")]), is_trusted=True)
    assert (only_id.request_id, only_id.is_continued) == (b"mine", False)
    only_trace = trace_context(ReceivedHeaders([(b"traceparent", PARENT)]), is_trusted=True)
    assert only_trace.is_continued
    assert only_trace.request_id != b"mine"
    traces = [trace_context(ReceivedHeaders([]), is_trusted=False) for _ in range(200)]
    assert len({trace.request_id for trace in traces} | {trace.traceparent for trace in traces}) == 400
    assert all(re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace.traceparent) for trace in traces)
