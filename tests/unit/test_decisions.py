"""The pure deciders: fields, balancing, faults, histograms, names, gate."""

from __future__ import annotations

import asyncio
import ipaddress
import json

import pytest

from gateway.config.values import Endpoint
from gateway.errors import Blame, Fault, FaultKind, problem_document, proxy_status
from gateway.http.headers import (
    ClientInfo,
    ReceivedHeaders,
    check_head,
    default_headers,
    encode_head,
    end_to_end,
    is_trusted,
    request_headers,
    response_headers,
    trace_context,
)
from gateway.observe.stats import Histogram, Stats, UpstreamStats, method_label
from gateway.storage.names import numbered, random_name, safe_name
from gateway.upstream.balancing import Balancer, EndpointState
from gateway.upstream.capacity import CapacityLimiter, InFlightCounter


def states(count: int) -> list[EndpointState]:
    return [EndpointState(Endpoint("http", f"h{number}", 80)) for number in range(count)]


def hosts(balancer: Balancer) -> list[str]:
    return [state.endpoint.host for state in balancer.order()]


def test_round_robin_turns_and_offers_every_endpoint() -> None:
    balancer = Balancer("round_robin", states(3))
    assert [hosts(balancer) for _ in range(4)] == [
        ["h0", "h1", "h2"],
        ["h1", "h2", "h0"],
        ["h2", "h0", "h1"],
        ["h0", "h1", "h2"],
    ]


def test_least_requests_prefers_the_idle_one() -> None:
    known = states(3)
    known[0].in_flight, known[1].in_flight = 2, 1
    assert hosts(Balancer("least_requests", known)) == ["h2", "h1", "h0"]
    known[0].leave()
    known[0].leave()
    assert hosts(Balancer("least_requests", known))[0] == "h0"


def test_random_two_never_begins_with_the_busiest() -> None:
    known = states(3)
    known[1].in_flight = 9
    balancer = Balancer("random_two", known)
    assert all(hosts(balancer)[0] != "h1" for _ in range(200))
    assert hosts(Balancer("random_two", states(1))) == ["h0"]


def test_endpoints_that_are_out_come_last_but_come() -> None:
    known = states(3)
    known[0].is_up = False
    assert hosts(Balancer("round_robin", known)) == ["h1", "h2", "h0"]


def test_every_fault_has_a_status_of_its_blame() -> None:
    for kind in FaultKind:
        info = kind.info
        if info.blame is Blame.CLIENT:
            assert 400 <= info.status < 500, kind
        elif info.blame is Blame.UPSTREAM:
            assert info.status in (502, 504), kind
        else:
            assert info.status in (500, 503, 507), kind


def test_fault_is_told_as_problem_and_proxy_status() -> None:
    fault = Fault(FaultKind.BODY_TOO_LARGE, "too much", facts={"limit": 5})
    document = json.loads(problem_document(fault, route="r", request_id="id"))
    assert document["code"] == "body_too_large"
    assert document["limit"] == 5
    assert proxy_status(fault) == b'streaming-gateway; error=http_request_error; details="Body too large"'
    assert str(fault) == "body_too_large: too much"


def test_histogram_counts_into_the_right_bucket() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.total == 12


def test_labels_cannot_be_invented_by_a_client() -> None:
    assert method_label("GET") == "GET"
    assert method_label("BREW") == "other"
    assert Stats.NO_ROUTE in Stats([], []).routes


def test_trust_is_by_network_and_never_by_name() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")]
    assert is_trusted("10.1.2.3", networks)
    assert is_trusted("fe80::1%eth0", networks)
    assert not is_trusted("11.0.0.1", networks)
    assert not is_trusted("", networks)
    assert not is_trusted("10.1.2.3", [])


def test_connection_may_not_nominate_the_framing_away() -> None:
    fields = [(b"Connection", b"content-length, x-a"), (b"Content-Length", b"3"), (b"X-A", b"1"), (b"TE", b"x")]
    assert end_to_end(ReceivedHeaders(fields)) == [(b"Content-Length", b"3")]


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
def test_head_that_is_not_sound_is_refused(
    version: tuple[int, int], method: str, target: str, fields: list[tuple[bytes, bytes]], kind: FaultKind
) -> None:
    with pytest.raises(Fault) as caught:
        check_head(version, method, target, ReceivedHeaders(fields))
    assert caught.value.kind is kind


@pytest.mark.parametrize(
    ("method", "target", "extra"),
    [("OPTIONS", "*", []), ("POST", "/a?b", [(b"Transfer-Encoding", b"Chunked ")]), ("GET", "/", [])],
)
def test_head_that_is_sound_passes(method: str, target: str, extra: list[tuple[bytes, bytes]]) -> None:
    found = check_head((1, 1), method, target, ReceivedHeaders([(b"Host", b"H:80"), *extra]))
    assert (found.path + found.query, found.host) == (target, "h")


def test_titles_can_stand_in_a_field() -> None:
    for kind in FaultKind:
        assert kind.info.title.isascii()
        assert '"' not in kind.info.title


def test_absolute_form_names_the_host() -> None:
    target = check_head((1, 1), "GET", "HTTP://Real.Example:81?q", ReceivedHeaders([(b"Host", b"other")]))
    assert (target.path, target.query, target.host, target.authority) == ("/", "?q", "real.example", b"Real.Example:81")


@pytest.mark.parametrize(
    "name", ["a", "日本", "x" * 400, "é" * 300 + ".wav", "." * 50, " . ", "\ud800", "a" * 250 + "." + "b" * 40]
)
def test_safe_name_is_one_that_a_file_system_takes(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(numbered(safe, 9999).encode()) <= 255
    assert "/" not in safe
    assert not safe.startswith(".")


def test_random_names_differ_and_keep_the_extension() -> None:
    assert random_name("a.wav") != random_name("a.wav")
    assert random_name("a.wav").endswith(".wav")


async def test_gate_gives_slots_in_order_and_loses_none() -> None:
    stats = UpstreamStats("up")
    capacity = CapacityLimiter(slots=1, max_queued=10, queue_seconds=float("inf"), stats=stats)
    order: list[int] = []

    async def hold(number: int) -> None:
        async with capacity:
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hold(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert stats.queue_length == 5
        tasks[2].cancel()
    assert order == [0, 1, 3, 4, 5]
    assert stats.queue_length == 0
    async with capacity:
        pass


async def test_slot_given_to_a_waiter_that_is_cancelled_in_the_same_turn_goes_on() -> None:
    capacity = CapacityLimiter(slots=1, max_queued=10, queue_seconds=float("inf"), stats=UpstreamStats("up"))
    inside = asyncio.Event()
    release = asyncio.Event()

    async def hold() -> None:
        async with capacity:
            inside.set()
            await release.wait()

    async def take() -> bool:
        async with capacity:
            return True

    first = asyncio.create_task(hold())
    await inside.wait()
    second, third = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    release.set()
    await first
    second.cancel()
    assert await third
    await asyncio.gather(second, return_exceptions=True)


async def test_drain_waits_for_the_last_exchange() -> None:
    drain = InFlightCounter()
    await drain.wait_empty()
    with drain:
        drain.begin()
        waiting = asyncio.create_task(drain.wait_empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert drain.is_draining


PARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


def client_info(*, is_trusted: bool) -> ClientInfo:
    return ClientInfo("::1", is_trusted, b"http", b"gw:80")


def test_fields_of_an_untrusted_client_are_said_anew() -> None:
    fields = [
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"X_Forwarded_For", b"6.6.6.6"),
        (b"Forwarded", b"for=6.6.6.6"),
        (b"tracestate", b"x=y"),
        (b"Host", b"gw"),
        (b"Expect", b"100-continue"),
        (b"A_B", b"kept"),
    ]
    named = ReceivedHeaders([*fields, (b"X-Request-Id", b"mine"), (b"traceparent", PARENT)])
    trace = trace_context(named, is_trusted=False)
    assert trace.request_id != b"mine"
    sent = ReceivedHeaders(request_headers(ReceivedHeaders(fields), client_info(is_trusted=False), trace))
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


def test_fields_of_a_trusted_proxy_are_continued() -> None:
    fields = [
        (b"X-Forwarded-For", b"6.6.6.6"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=6.6.6.6"),
        (b"X-Request-Id", b"mine"),
        (b"traceparent", PARENT),
        (b"tracestate", b"x=y"),
    ]
    trace = trace_context(ReceivedHeaders(fields), is_trusted=True)
    sent = ReceivedHeaders(request_headers(ReceivedHeaders(fields), client_info(is_trusted=True), trace))
    assert sent.all(b"x-forwarded-for") == [b"6.6.6.6, ::1"]
    assert sent.all(b"x-forwarded-proto") == [b"https"]
    assert sent.all(b"x-forwarded-host") == [b"gw:80"]
    assert sent.all(b"forwarded")[0].startswith(b"for=6.6.6.6, for=")
    assert sent.all(b"x-request-id") == [b"mine"]
    assert sent.all(b"tracestate") == [b"x=y"]
    assert sent.all(b"traceparent")[0][:36] == PARENT[:36]
    assert sent.all(b"traceparent")[0] != PARENT


def test_fields_that_connection_nominates_end_here_both_ways() -> None:
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
    sent = [name for name, _ in request_headers(fields, client_info(is_trusted=False), trace)]
    assert sent[0] == b"X-B"
    assert b"X-a" not in sent
    answered = ReceivedHeaders(response_headers(fields, trace))
    assert answered.keys == [b"x-b", b"date", b"via", b"x-request-id"]
    assert answered.first(b"date") != b"d"


@pytest.mark.parametrize("request_id", [b"", b"a b", b"x" * 129, b"a\xff"])
def test_request_id_that_is_not_sound_is_replaced(request_id: bytes) -> None:
    assert trace_context(ReceivedHeaders([(b"X-Request-Id", request_id)]), is_trusted=True).request_id != request_id


def test_answer_gets_a_date_and_a_request_id_only_if_it_has_none() -> None:
    trace = trace_context(ReceivedHeaders([]), is_trusted=False)
    bare = response_headers(ReceivedHeaders([(b"Content-Length", b"3"), (b"A", b"b")]), trace)
    assert [name for name, _ in bare] == [b"A", b"Date", b"Via", b"X-Request-Id"]
    full = response_headers(ReceivedHeaders([(b"date", b"today"), (b"x-request-id", b"theirs")]), trace)
    assert [name for name, _ in full] == [b"date", b"x-request-id", b"Via"]
    assert ReceivedHeaders(default_headers(trace)).all(b"x-request-id") == [trace.request_id]


def test_head_in_wire_form() -> None:
    assert (
        encode_head(b"GET / HTTP/1.1", [(b"A", b"1"), (b"a", b"\xff")]) == b"GET / HTTP/1.1\r\nA: 1\r\na: \xff\r\n\r\n"
    )


def test_fault_names_its_blame_and_outcome() -> None:
    fault = Fault(FaultKind.CLIENT_LEFT, "gone")
    assert (fault.blame, fault.outcome, fault.status) == (Blame.CLIENT, "client_left", 499)
