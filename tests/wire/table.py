"""The table of wire cases: a request or response, what a correct gateway does with it, and the source of the rule.

Each request is sent through a proxy to a recording upstream. The table is also run against nginx and HAProxy, to check
that it requires nothing that established proxies do not do. RFC 9110 and 9112 are cited by section.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSE = b"Connection: close\r\n"


@dataclass(frozen=True)
class Case:
    """One case. At most one of `refused` and `failed` is set; with neither the exchange must succeed."""

    name: str
    source: str
    request: bytes
    #: The response of the upstream, and whether the upstream closes the connection after it.
    response: bytes = OK
    closes: bool = True
    #: The client gets one of these statuses or a closed connection, and the upstream receives no request.
    refused: tuple[int, ...] = ()
    #: The client gets one of these statuses, or an incomplete body.
    failed: tuple[int, ...] = ()
    #: Bytes that the upstream and the client must receive, and must not receive.
    upstream_sees: tuple[bytes, ...] = ()
    upstream_lacks: tuple[bytes, ...] = ()
    client_sees: tuple[bytes, ...] = field(default=())
    client_lacks: tuple[bytes, ...] = ()
    #: The maximum number of requests that reach the upstream.
    max_requests: int = 1
    #: The upstream ends its response by resetting the connection.
    resets: bool = False


def get(fields: bytes = b"", target: bytes = b"/", version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" " + version + b"\r\nHost: example\r\n" + CLOSE + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: example\r\n" + CLOSE + fields + b"\r\n" + body


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example\r\n\r\n"
BAD = (400, 501)

REQUESTS = [
    # Framing (RFC 9112 section 6), and forms of request smuggling.
    Case(
        "content-length-and-transfer-encoding",
        "9112 6.1, CL.TE",
        post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
        refused=BAD,
    ),
    Case(
        "transfer-encoding-and-content-length",
        "9112 6.1, TE.CL",
        post(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n"),
        refused=BAD,
    ),
    Case(
        "two-content-lengths",
        "9112 6.3 rule 5",
        post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"),
        refused=BAD,
    ),
    Case("content-length-list", "9112 6.3 rule 5", post(b"Content-Length: 3, 4\r\n", b"abcd"), refused=BAD),
    Case("content-length-plus", "9110 8.6", post(b"Content-Length: +3\r\n", b"abc"), refused=BAD),
    Case("content-length-minus", "9110 8.6", post(b"Content-Length: -1\r\n", b"abc"), refused=BAD),
    Case("content-length-hex", "9110 8.6", post(b"Content-Length: 0x3\r\n", b"abc"), refused=BAD),
    Case("content-length-underscore", "9110 8.6", post(b"Content-Length: 1_0\r\n", b"abcdefghij"), refused=BAD),
    Case("content-length-empty", "9110 8.6", post(b"Content-Length: \r\n", b""), refused=BAD),
    Case(
        "content-length-overflow",
        "9110 8.6",
        post(b"Content-Length: 99999999999999999999999\r\n", b"abc"),
        refused=(400, 413),
    ),
    Case(
        "te-twice",
        "9112 6.1",
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        refused=BAD,
    ),
    Case("te-chunked-twice", "9112 7.1", post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), refused=BAD),
    Case("te-unknown", "9112 6.1", post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), refused=BAD),
    Case("te-identity", "9112 6.1", post(b"Transfer-Encoding: identity\r\n", b"abc"), refused=BAD),
    Case(
        "te-chunked-not-last",
        "9112 6.3 rule 4",
        post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
        refused=BAD,
    ),
    Case(
        "te-gzip-chunked",
        "9112 6.1: a coding not understood",
        post(b"Transfer-Encoding: gzip, chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        refused=(400, 422, 501),
    ),
    Case(
        "te-space-before-colon", "9112 5.1, TE.TE", post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), refused=BAD
    ),
    Case("te-vertical-tab", "TE.TE", post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), refused=BAD),
    Case(
        "te-in-http-1.0",
        "9112 6.1",
        b"POST / HTTP/1.0\r\nHost: example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        refused=BAD,
    ),
    Case(
        "te-look-alike-underscore",
        "TE.TE with WSGI",
        post(b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n", b"abc"),
        upstream_sees=(b"abc",),
        upstream_lacks=(b"Transfer_Encoding",),
    ),
    Case(
        "chunk-size-hex-prefix",
        "9112 7.1",
        post(b"Transfer-Encoding: chunked\r\n", b"0x3\r\nabc\r\n0\r\n\r\n"),
        failed=(400,),
    ),
    Case(
        "chunk-size-overflow",
        "9112 7.1.1",
        post(b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff1\r\nabc\r\n0\r\n\r\n"),
        failed=(400, 413),
    ),
    Case(
        "chunk-size-negative",
        "9112 7.1",
        post(b"Transfer-Encoding: chunked\r\n", b"-3\r\nabc\r\n0\r\n\r\n"),
        failed=(400,),
    ),
    Case(
        "chunk-without-final-crlf",
        "9112 7.1",
        post(b"Transfer-Encoding: chunked\r\n", b"3\r\nabcXX0\r\n\r\n"),
        failed=(400,),
    ),
    Case(
        "chunk-bare-lf", "9112 7.1, TERM.EXT", post(b"Transfer-Encoding: chunked\r\n", b"3\nabc\n0\n\n"), failed=(400,)
    ),
    Case(
        "chunk-extension-bare-lf",
        "9112 7.1.1, TERM.EXT",
        post(b"Transfer-Encoding: chunked\r\n", b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
        failed=(400,),
    ),
    Case(
        "chunk-extension-passes",
        "9112 7.1.1",
        post(b"Transfer-Encoding: chunked\r\n", b"3;a=b\r\nabc\r\n0\r\n\r\n"),
        upstream_sees=(b"abc",),
    ),
    Case(
        "trailers-do-not-become-headers",
        "9110 6.5.1",
        post(b"Transfer-Encoding: chunked\r\nTrailer: X-A\r\n", b"3\r\nabc\r\n0\r\nX-Evil: 1\r\n\r\n"),
        upstream_sees=(b"abc",),
        client_sees=(b" 200 ",),
    ),
    Case(
        "trailer-does-not-leak-into-the-next-request",
        "aiohttp 3.14.5",
        b"POST / HTTP/1.1\r\nHost: example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Evil: trailer\r\n\r\n"
        + get(target=b"/second"),
        closes=False,
        upstream_lacks=(b"X-Evil: trailer\r\nX-Forwarded", b"second HTTP/1.1\r\nX-Evil"),
        max_requests=2,
        client_sees=(b" 200 ",),
    ),
    Case(
        "post-without-length",
        "9112 6.3 rule 7",
        b"POST / HTTP/1.1\r\nHost: example\r\n" + CLOSE + b"\r\n",
        client_sees=(b" 200 ",),
    ),
    Case(
        "get-with-body",
        "9110 9.3.1",
        b"GET / HTTP/1.1\r\nHost: example\r\n" + CLOSE + b"Content-Length: 3\r\n\r\nabc",
        upstream_sees=(b"abc",),
        client_sees=(b" 200 ",),
    ),
    Case(
        "get-with-body-is-one-request",
        "CL.0",
        b"GET / HTTP/1.1\r\nHost: example\r\n" + CLOSE + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        max_requests=1,
        upstream_sees=(b"/smuggled",),
    ),
    # The request head (RFC 9112 sections 2 to 5).
    Case("no-host", "9112 3.2", b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("two-hosts", "9112 3.2", get(b"Host: other\r\n"), refused=BAD),
    Case("host-with-user", "9112 3.2", b"GET / HTTP/1.1\r\nHost: a@b\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("host-with-path", "9112 3.2", b"GET / HTTP/1.1\r\nHost: a/b\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("host-with-space", "9112 3.2", b"GET / HTTP/1.1\r\nHost: a b\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case(
        "host-with-comma", "9112 3.2", b"GET / HTTP/1.1\r\nHost: a, b\r\n" + CLOSE + b"\r\n", client_lacks=(b" 500 ",)
    ),
    Case("host-with-two-ports", "9112 3.2", b"GET / HTTP/1.1\r\nHost: a:1:2\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("host-open-bracket", "9112 3.2", b"GET / HTTP/1.1\r\nHost: [::1\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("host-bad-port", "9110 7.2", b"GET / HTTP/1.1\r\nHost: a:99999\r\n" + CLOSE + b"\r\n", refused=BAD),
    Case("host-ipv6", "9110 7.2", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n" + CLOSE + b"\r\n", client_sees=(b" 200 ",)),
    Case("http-2.0-line", "9112 2.3", get(version=b"HTTP/2.0"), refused=(400, 505)),
    Case("http-1.2-line", "9112 2.3", get(version=b"HTTP/1.2"), client_lacks=(b" 500 ",)),
    Case("http-0.9", "9112 2.3", b"GET /\r\n\r\n", refused=(400, 426, 505)),
    Case("lower-case-version", "9112 2.3", get(version=b"http/1.1"), refused=BAD),
    Case("space-before-colon", "9112 5.1", get(b"X-A : 1\r\n"), refused=BAD),
    Case("space-in-name", "9110 5.6.2", get(b"X A: 1\r\n"), refused=BAD),
    Case("empty-name", "9110 5.6.2", get(b": 1\r\n"), refused=BAD),
    Case("obs-fold", "9112 5.2", get(b"X-A: 1\r\n 2\r\n"), upstream_lacks=(b"1\r\n 2",)),
    Case(
        "space-before-first-header",
        "9112 2.2",
        b"GET / HTTP/1.1\r\n Host: example\r\nHost: example\r\n" + CLOSE + b"\r\n",
        upstream_lacks=(b"\r\n Host",),
    ),
    Case("nul-in-value", "9110 5.5", get(b"X-A: a\x00b\r\n"), refused=BAD),
    Case("bare-cr-in-value", "9112 2.2", get(b"X-A: a\rX-Evil: b\r\n"), upstream_lacks=(b"a\rX-Evil",)),
    Case(
        "bare-lf-line-end",
        "9112 2.2",
        b"GET / HTTP/1.1\nHost: example\nConnection: close\n\n",
        client_lacks=(b" 500 ",),
    ),
    Case("control-in-target", "9112 3.2", get(target=b"/a\x01b"), refused=BAD),
    Case("space-in-target", "9112 3", get(target=b"/a b"), refused=BAD),
    Case("fragment-in-target", "9112 3.2", get(target=b"/a#b"), upstream_lacks=(b"#b",)),
    Case(
        "absolute-form",
        "9112 3.2.2",
        get(target=b"http://example/x?y"),
        upstream_sees=(b"GET /x?y HTTP/1.1",),
        client_sees=(b" 200 ",),
    ),
    Case(
        "absolute-form-overrides-host",
        "9112 3.2.2",
        get(target=b"http://real.example/x"),
        upstream_sees=(b"ost: real.example",),
    ),
    Case("authority-form", "9112 3.2.3", get(target=b"example:80"), refused=(400, 404)),
    Case("asterisk-form-get", "9112 3.2.4", get(target=b"*"), refused=(400, 404)),
    Case(
        "connect",
        "9110 9.3.6",
        b"CONNECT example:80 HTTP/1.1\r\nHost: example:80\r\n\r\n",
        refused=(400, 403, 404, 405, 501),
    ),
    Case("trace", "9110 9.3.8", get(method=b"TRACE"), refused=(405, 501)),
    Case("lower-case-method", "9110 9.1", get(method=b"get"), client_lacks=(b" 500 ",)),
    Case("leading-empty-line", "9112 2.2", b"\r\n" + get(), client_sees=(b" 200 ",)),
    Case(
        "target-kept-as-sent",
        "9112 3.2.1",
        get(target=b"/a/../b//c/%2e%2E/%7e?x=%2F&&"),
        upstream_sees=(b"GET /a/../b//c/%2e%2E/%7e?x=%2F&& HTTP/1.1",),
    ),
    Case("empty-query-kept", "3986 3.4", get(target=b"/a?"), upstream_sees=(b"GET /a? HTTP/1.1",)),
    Case("two-slashes-kept", "3986 3.3", get(target=b"//a"), upstream_sees=(b"GET //a HTTP/1.1",)),
    Case("long-header", "9110 5.4", get(b"X-A: " + b"a" * 70_000 + b"\r\n"), refused=(400, 414, 431)),
    Case("long-target", "9112 3", get(target=b"/" + b"a" * 70_000), refused=(400, 414)),
    Case(
        "many-headers", "9110 5.4", get(b"".join(b"X-%d: a\r\n" % number for number in range(5000))), refused=(400, 431)
    ),
    # Headers across a hop (RFC 9110 sections 7 to 10).
    Case(
        "connection-nominated-dropped",
        "9110 7.6.1",
        b"GET / HTTP/1.1\r\nHost: example\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
        upstream_lacks=(b"X-Hop: 1",),
        client_sees=(b" 200 ",),
    ),
    Case(
        "keep-alive-dropped", "9110 7.6.1", get(b"Keep-Alive: timeout=5\r\n"), upstream_lacks=(b"Keep-Alive: timeout",)
    ),
    Case("te-dropped", "9110 10.1.4", get(b"TE: trailers, deflate\r\n"), upstream_lacks=(b"TE: trailers, deflate",)),
    Case(
        "proxy-connection-dropped",
        "9112 C.2.2",
        get(b"Proxy-Connection: keep-alive\r\n"),
        upstream_lacks=(b"Proxy-Connection",),
    ),
    Case(
        "upgrade-h2c-dropped",
        "9113 3.1, h2c smuggling",
        b"GET / HTTP/1.1\r\nHost: example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        upstream_lacks=(b"h2c",),
    ),
    Case("via-is-added", "9110 7.6.3", get(b"Via: 1.0 fred\r\n"), upstream_sees=(b"Via: 1.0 fred", b"1.1 ")),
    Case(
        "forwarded-for-not-trusted", "field.md D3", get(b"X-Forwarded-For: 6.6.6.6\r\n"), upstream_lacks=(b"6.6.6.6",)
    ),
    Case(
        "forwarded-for-underscore-not-trusted",
        "WSGI",
        get(b"X_Forwarded_For: 6.6.6.6\r\n"),
        upstream_lacks=(b"6.6.6.6",),
    ),
    Case(
        "duplicates-in-order",
        "9110 5.3",
        get(b"X-A: 1\r\nX-B: b\r\nX-A: 2\r\n"),
        upstream_sees=(b"X-A: 1\r\nX-B: b\r\nX-A: 2\r\n",),
    ),
    Case("duplicates-of-other-case", "9110 5.3", get(b"X-A: 1\r\nx-a: 2\r\n"), upstream_sees=(b"X-A: 1", b"x-a: 2")),
    Case("bytes-outside-ascii-kept", "9110 5.5", get(b"X-A: caf\xe9\r\n"), upstream_sees=(b"caf\xe9\r\n",)),
    Case(
        "no-headers-added",
        "9110 3.7",
        get(),
        upstream_lacks=(b"User-Agent", b"Accept:", b"Accept-Encoding", b"Content-Type"),
    ),
    Case(
        "authorization-passed",
        "9110 11.6.2",
        get(b"Authorization: Basic eA==\r\n"),
        upstream_sees=(b"Authorization: Basic eA==",),
    ),
    Case(
        "expect-unknown",
        "9110 10.1.1",
        post(b"Expect: magic\r\nContent-Length: 3\r\n", b"abc"),
        client_lacks=(b" 500 ",),
    ),
    Case(
        "pipelined-two",
        "9112 9.3.2",
        b"GET /1 HTTP/1.1\r\nHost: example\r\n\r\n" + get(target=b"/2"),
        closes=False,
        max_requests=2,
        upstream_sees=(b"/1", b"/2"),
        client_sees=(b"ok", b"ok"),
    ),
    Case("http-1.0-request", "9112 2.3", b"GET / HTTP/1.0\r\n\r\n", client_sees=(b" 200 ", b"ok")),
    Case(
        "http-1.0-keep-alive",
        "9112 C.2.2",
        b"GET / HTTP/1.0\r\nHost: example\r\nConnection: keep-alive\r\n\r\n",
        client_sees=(b" 200 ", b"ok"),
    ),
    Case(
        "head-has-no-body",
        "9110 9.3.2",
        get(method=b"HEAD"),
        response=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        client_sees=(b"ontent-", b": 1000\r\n"),
    ),
    Case("options-asterisk", "9110 9.3.7", get(target=b"*", method=b"OPTIONS"), client_lacks=(b" 500 ",)),
]


def response_case(response: bytes, name: str, source: str, **rest: object) -> Case:
    """Return a case about the upstream's response to a plain GET."""
    return Case(name, source, get(), response=response, **rest)  # type: ignore[arg-type]  # Case checks its own attributes


HEAD = b"HTTP/1.1 200 OK\r\n"
BAD_GATEWAY = (500, 502, 503)

RESPONSES = [
    response_case(
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "response-cl-and-te",
        "9112 6.3 rule 3",
        failed=BAD_GATEWAY,
    ),
    response_case(
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        "response-two-content-lengths",
        "9112 6.3 rule 5",
        failed=BAD_GATEWAY,
    ),
    response_case(
        HEAD + b"Content-Length: 2, 3\r\n\r\nabc", "response-content-length-list", "9112 6.3 rule 5", failed=BAD_GATEWAY
    ),
    response_case(
        HEAD + b"Content-Length: -1\r\n\r\nabc", "response-content-length-minus", "9110 8.6", failed=BAD_GATEWAY
    ),
    response_case(
        HEAD + b"Content-Length: x\r\n\r\nabc", "response-content-length-word", "9110 8.6", failed=BAD_GATEWAY
    ),
    response_case(
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "response-te-gzip",
        "9112 6.1",
        failed=BAD_GATEWAY,
    ),
    response_case(
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\nabc", "response-te-unknown", "9112 6.1", failed=BAD_GATEWAY
    ),
    response_case(HEAD + b"Content-Length: 10\r\n\r\nabc", "response-too-short", "9112 8", failed=BAD_GATEWAY),
    response_case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "response-chunked-cut", "9112 8", failed=BAD_GATEWAY
    ),
    response_case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        "response-chunk-size-bad",
        "9112 7.1",
        failed=BAD_GATEWAY,
    ),
    response_case(HEAD + b"\r\nabc", "response-close-delimited-reset", "9112 8", failed=BAD_GATEWAY, resets=True),
    response_case(HEAD + b"\r\nabc", "response-close-delimited", "9112 6.3 rule 8", client_sees=(b"abc",)),
    response_case(b"", "response-empty", "9110 15.6.3", failed=BAD_GATEWAY),
    response_case(b"garbage\r\n\r\n", "response-garbage", "9110 15.6.3", failed=BAD_GATEWAY),
    response_case(b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n", "response-status-99", "9110 15", failed=BAD_GATEWAY),
    response_case(
        b"HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n", "response-status-word", "9112 4", failed=BAD_GATEWAY
    ),
    response_case(HEAD + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n", "response-nul", "9110 5.5", failed=BAD_GATEWAY),
    response_case(
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw",
        "response-unrequested-101",
        "9110 15.2.2",
        failed=BAD_GATEWAY,
    ),
    response_case(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        "response-103-then-200",
        "8297 2",
        client_sees=(b" 200 ", b"ok"),
    ),
    response_case(
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "response-unrequested-100", "9110 15.2", client_sees=(b" 200 ", b"ok")
    ),
    response_case(
        b"HTTP/1.1 204 No\r\nX-A: b\r\n\r\n",
        "response-204",
        "9110 15.3.5",
        client_sees=(b" 204 ", b"X-A: b"),
        client_lacks=(b"Transfer-Encoding", b"transfer-encoding"),
    ),
    response_case(
        b'HTTP/1.1 304 Same\r\nETag: "x"\r\nContent-Length: 1000\r\n\r\n',
        "response-304-keeps-length",
        "9110 8.6",
        client_sees=(b" 304 ", b": 1000\r\n"),
    ),
    response_case(
        HEAD + b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
        "response-two-cookies",
        "6265 3",
        client_sees=(b"Set-Cookie: a=1\r\n", b"Set-Cookie: b=2\r\n"),
    ),
    response_case(
        b"HTTP/1.1 302 RouteMatch\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
        "response-redirect-passed",
        "9110 15.4",
        client_sees=(b" 302 ", b"Location: http://elsewhere/"),
    ),
    response_case(
        b"HTTP/1.1 299 Strange Phrase\r\nContent-Length: 0\r\n\r\n",
        "response-reason-phrase-passed",
        "9112 4",
        client_sees=(b" 299 Strange Phrase\r\n",),
    ),
    response_case(
        b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
        "response-empty-reason",
        "9112 4",
        client_sees=(b" 200 ", b"ok"),
    ),
    response_case(
        HEAD + b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n",
        "response-hop-by-hop",
        "9110 7.6.1",
        client_lacks=(b"X-Hop", b"timeout=1"),
    ),
    response_case(
        HEAD + b"Content-Length: 2\r\n\r\nok",
        "response-no-type-added",
        "9110 8.3",
        client_lacks=(b"ontent-Type:", b"ontent-type:"),
    ),
    response_case(
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8bxx",
        "response-compressed-unchanged",
        "9110 8.4",
        client_sees=(b"\x1f\x8bxx", b"Content-Encoding: gzip"),
    ),
    response_case(
        HEAD + b"Content-Length: 2\r\n\r\nok", "response-date-is-added", "9110 6.6.1", client_sees=(b"ate: ",)
    ),
    response_case(
        HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "response-followed-by-another",
        "response smuggling",
        client_lacks=(b"evil",),
    ),
    response_case(
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
        "response-206",
        "9110 15.3.7",
        client_sees=(b" 206 ", b"bytes 0-1/9", b"ok"),
    ),
    response_case(
        HEAD + b"X-A: caf\xe9\r\nContent-Length: 0\r\n\r\n",
        "response-bytes-outside-ascii",
        "9110 5.5",
        client_sees=(b"caf\xe9\r\n",),
    ),
    response_case(
        HEAD + b"X-A: a\rX-Evil: b\r\nContent-Length: 0\r\n\r\n",
        "response-bare-cr",
        "9112 2.2",
        client_lacks=(b"a\rX-Evil",),
    ),
    response_case(
        HEAD + b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n", "response-obs-fold", "9112 5.2", client_lacks=(b"a\r\n b",)
    ),
    response_case(
        HEAD + b"X-A : a\r\nContent-Length: 0\r\n\r\n",
        "response-space-before-colon",
        "9112 5.1",
        client_lacks=(b"X-A : a",),
    ),
    response_case(
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "response-bare-lf", "9112 2.2", client_lacks=(b"OK\nC",)
    ),
    response_case(
        HEAD + b"X-A: " + b"a" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
        "response-long-header",
        "9110 5.4",
        failed=BAD_GATEWAY,
    ),
    response_case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Evil: 1\r\n\r\n",
        "response-trailer-is-not-a-header",
        "9110 6.5.1",
        client_sees=(b"ok",),
    ),
    response_case(b"HTTP/1.0 200 OK\r\n\r\nabc", "response-http-1.0", "9112 2.3", client_sees=(b" 200 ", b"abc")),
]

TABLE = REQUESTS + RESPONSES
