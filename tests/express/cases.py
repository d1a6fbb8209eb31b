"""Random requests and the responses of the upstream to them, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

#: The limit of a body in the config of the tests.
MAX_BODY_BYTES: Final = 24_000
#: Longer than the lane waits for a response.
_DELAY_SECONDS: Final = 0.11
_BOUNDARY: Final = b"XBOUNDARYX"


@dataclass
class Case:
    """One request, and what the upstream does when it has received it."""

    number: int
    method: str
    #: What the client writes, piece by piece.
    request: list[bytes]
    #: What the upstream writes, piece by piece.
    response: list[bytes]
    #: What makes it special, for messages.
    traits: list[str] = field(default_factory=list)
    delay_seconds: float = 0.0
    #: The upstream ends the connection after its response.
    closes: bool = False
    resets: bool = False
    #: What it does only this long after its response: then the gateway has passed on what came before.
    end_delay_seconds: float = 0.0
    #: Only the first attempt gets `response`, a second one is served.
    fails_once: bool = False

    def __str__(self) -> str:
        """Return what a failure is reproduced with."""
        return (
            f"case {self.number}: {', '.join(self.traits)}\n  request {b''.join(self.request)[:600]!r}"
            f"\n  response {[piece[:400] for piece in self.response]!r} closes {self.closes} resets {self.resets}"
        )


def make_case(number: int, generator: random.Random) -> Case:
    """Return a random case; most are plain, since the lane is for those."""
    case = Case(number, "GET", [], [])
    _add_request(case, generator)
    _add_response(case, generator)
    return case


def _add_request(case: Case, generator: random.Random) -> None:
    case.method = method = generator.choices(
        ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"), (40, 36, 6, 4, 4, 3, 2, 1)
    )[0]
    has_body = method in ("POST", "PUT", "PATCH") or generator.random() < 0.03
    headers = [b"Host: " + generator.choice([b"gw.example", b"GW.example:8080", b"[::1]:80", b"127.0.0.1"] * 5 + [b""])]
    headers += [b"X-Case: %d" % case.number]
    if generator.random() < 0.2:
        headers += _pick(generator, _PLAIN_HEADERS, 5)
    else:
        headers += generator.sample(_PLAIN_HEADERS, generator.randrange(6))
    if generator.random() < 0.3:
        headers += _pick(generator, _ODD_HEADERS, 3)
        case.traits.append("odd headers")
    if generator.random() < 0.02:
        headers.append(generator.choice(_BAD_HEADERS))
        case.traits.append("bad header")
    body = b""
    if has_body:
        trait, kind, body = _make_body(generator)
        case.traits.append(trait)
        headers += [b"Content-Type: " + kind] if kind else []
        if trait == "chunked":
            headers.append(b"Transfer-Encoding: chunked")
            half = len(body) // 2
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:half], body[half:]) if each)
            body += b"0\r\n\r\n"
        else:
            headers.append(b"Content-Length: %d" % len(body))
    generator.shuffle(headers)
    target = generator.choice(_TARGETS) if generator.random() < 0.4 else generator.choice(_ROUTES)
    if method == "OPTIONS" and generator.random() < 0.1:
        target = b"*"
    version = b"HTTP/1.0" if generator.random() < 0.01 else b"HTTP/1.1"
    line = method.encode() + b" " + target + b" " + version
    request = b"\r\n".join([line, *headers, b"", b""]) + body
    # How much of a form was read before it is refused would depend on when it came.
    if generator.random() < 0.08 and "bad form" not in case.traits:
        case.traits.append("divided request")
        at = generator.randrange(1, len(request))
        case.request = [request[:at], request[at:]]
    else:
        case.request = [request]


def _make_body(generator: random.Random) -> tuple[str, bytes, bytes]:
    """Return a name for it, its type, and the body."""
    data = generator.randbytes(generator.choice((1, 2, 30, 1000, 1000, 8000, 20_000)))
    form = b"multipart/form-data; boundary=" + _BOUNDARY
    empty_kind = generator.choice((b"", b"application/json", b"multipart/form-data; boundary=x"))
    # Within one receive: of a longer one it depends on the time whether all has come when it is refused.
    too_large = bytes(MAX_BODY_BYTES + generator.choice((1, 5000, 30_000)))
    bodies = (
        ("no bytes", empty_kind, b""),
        ("json", b"application/json", b'{"a": "' + data.hex().encode() + b'"}'),
        ("raw", b"application/octet-stream", data),
        ("form", form, _form(generator, data)),
        ("odd form", _odd_type(generator), _odd_form(generator, data)),
        ("bad form", form, _bad_form(generator, data)),
        ("too large", b"text/plain", too_large),
        ("chunked", b"text/plain", data),
    )
    return generator.choices(bodies, (10, 30, 8, 30, 10, 4, 4, 4))[0]


def _part(parameters: bytes, data: bytes, kind: bytes = b"") -> bytes:
    head = b"--" + _BOUNDARY + b"\r\nContent-Disposition: form-data; " + parameters + b"\r\n"
    return head + (b"Content-Type: " + kind + b"\r\n" if kind else b"") + b"\r\n" + data + b"\r\n"


def _form(generator: random.Random, data: bytes) -> bytes:
    fields = b"".join(_part(b'name="f%d"' % each, b"value") for each in range(generator.randrange(4)))
    return fields + _part(b'name="file"; filename="a.bin"', data, b"a/b") + b"--" + _BOUNDARY + b"--\r\n"


def _odd_type(generator: random.Random) -> bytes:
    return generator.choice(
        (
            b'multipart/form-data; boundary="XBOUNDARYX"',
            b"Multipart/Form-Data;boundary=XBOUNDARYX; charset=utf-8",
            b"multipart/mixed; boundary=XBOUNDARYX",
            b"multipart/form-data; boundary=XBOUNDARYX",
        )
    )


def _odd_form(generator: random.Random, data: bytes) -> bytes:
    end = b"--" + _BOUNDARY + b"--"
    return generator.choice(
        (
            b"preamble\r\n" + _part(b'name="a"', data) + end + b"\r\nepilogue",
            _part(b'name="a\\"b"; filename="c"', data) + end,
            _part(b"name=a; filename*=utf-8''%e2%82%ac", data) + end + b"\r\n",
            _part('name="ä"; filename="ö"'.encode(), data, b"text/plain") + end + b"\r\n",
            _part(b'filename="b"; name="a"', data) + _part(b'name="a"', b"") + end + b"\r\n",
            end + b"\r\n",
        )
    )


def _bad_form(generator: random.Random, data: bytes) -> bytes:
    return generator.choice(
        (
            _part(b'name="a"', data),
            _part(b'name="a"', data)[:-1],
            b"no form at all",
            b"--" + _BOUNDARY + b"\r\nContent-Disposition: attachment\r\n\r\nx\r\n--" + _BOUNDARY + b"--\r\n",
            b"".join(_part(b'name="f%d"' % each, b"") for each in range(20)) + b"--" + _BOUNDARY + b"--\r\n",
        )
    )


def _add_response(case: Case, generator: random.Random) -> None:
    if generator.random() < 0.07:
        _add_fault(case, generator)
        return
    status, reason = generator.choices(_STATUSES, (70, 4, 5, 4, 4, 4, 4, 2, 3))[0]
    headers = _pick(generator, _RESPONSE_HEADERS, 5)
    if generator.random() < 0.1:
        headers += _pick(generator, _ODD_RESPONSE_HEADERS, 2)
        case.traits.append("odd response headers")
    size = generator.choices((0, 2, 100, 1000, 20_000, 66_000, 300_000), (4, 20, 50, 20, 6, 2, 2))[0]
    body = generator.randbytes(size)
    is_bodiless = case.method == "HEAD" or status in (204, 304)
    framing = generator.choices(("length", "chunked", "close"), (80, 15, 3))[0]
    if status == 204:
        framing = "none"
    if framing == "length":
        headers.append(b"Content-Length: %d" % len(body))
    elif framing == "chunked":
        headers.append(b"Transfer-Encoding: chunked")
        step = max(1, len(body) // generator.choice((1, 2, 7)))
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    elif framing == "close" and not is_bodiless:
        case.closes = True
    if generator.random() < 0.03:
        headers.append(b"Connection: close")
        case.closes = True
    case.traits.append(f"{status} {framing} {size}")
    generator.shuffle(headers)
    head = b"\r\n".join([b"HTTP/1.1 %d" % status + reason, *headers, b"", b""])
    case.response = _divide(case, generator, head, b"" if is_bodiless or framing == "none" else body)
    if generator.random() < 0.03:
        case.traits.append("interim response")
        interim = generator.choice((b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"))
        case.response = generator.choice(([interim, *case.response], [interim + case.response[0], *case.response[1:]]))
    if generator.random() < 0.03:
        case.traits.append("delay")
        case.delay_seconds = _DELAY_SECONDS


def _divide(case: Case, generator: random.Random, head: bytes, body: bytes) -> list[bytes]:
    match generator.choices(range(4), (80, 8, 6, 6))[0]:
        case 1:
            case.traits.append("head and body apart")
            return [head, body] if body else [head]
        case 2:
            case.traits.append("divided head")
            at = generator.randrange(1, len(head))
            return [head[:at], head[at:] + body]
        case 3 if body:
            case.traits.append("divided body")
            at = generator.randrange(len(body))
            return [head + body[:at], body[at:]]
        case _:
            return [head + body]


def _add_fault(case: Case, generator: random.Random) -> None:
    """Have the upstream fail."""
    name, response = generator.choice(_FAULTS)
    case.traits.append(name)
    case.response = [response] if response else []
    case.closes, case.resets = True, generator.random() < 0.3
    case.fails_once = not response and generator.random() < 0.6
    case.end_delay_seconds = _DELAY_SECONDS if b"abc" in response else 0.0


def _pick(generator: random.Random, headers: tuple[bytes, ...], most: int) -> list[bytes]:
    return [generator.choice(headers) for _ in range(generator.randrange(most + 1))]


_ROUTES: Final = (b"/", b"/opaque/x", b"/keep/y?z=1", b"/limited/a", b"/fields/a")
_TARGETS: Final = (
    b"/a%2Fb?x=1&y",
    b"/x?",
    b"//double//slash",
    b"/%ff%00",
    "/é".encode(),
    b"http://other.example/keep/x?y",
    b"http://other.example",
    b"/" + b"long/" * 300,
    b"/a?b?c",
    b"/a#fragment",
    b"no-slash",
    b"/opaque",
    b"/nothing/here",
)
_PLAIN_HEADERS: Final = (
    b"Accept: */*",
    b"User-Agent: test/1",
    b"Accept-Encoding: gzip, deflate",
    b"Cookie: a=b; c=d",
    b"Authorization: Bearer abc",
    b"Connection: keep-alive",
    b"X-Thing: 1",
    b"accept-language: de",
)
_ODD_HEADERS: Final = (
    b"X-Thing: 1",
    b"x-thing:   padded  \t",
    b"X-Empty:",
    b"X-Latin: \xe4\xff",
    "X-Utf8: äö".encode(),
    b"X_Forwarded_For: 6.6.6.6",
    b"X-Forwarded-For: 6.6.6.6",
    b"x-forwarded-proto: https",
    b"X-FORWARDED-HOST: evil",
    b"Forwarded: for=6.6.6.6",
    b"X-Request-Id: theirs",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"tracestate: a=b",
    b"X-Real-Ip: 6.6.6.6",
    b"Via: 1.0 before",
    b"TE: trailers",
    b"Trailer: X-A",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic abc",
    b"Connection: X-Thing",
    b"Connection: close",
    b"Connection: keep-alive, X-Nominated",
    b"X-Nominated: 1",
    b"Expect: 100-continue",
    b"Expect: 100-Continue",
    b"Content-Encoding: gzip",
    b"Range: bytes=0-1",
    b"If-None-Match: W/x",
    b"X-Long: " + b"y" * 3000,
    b"Upgrade: h2c",
    b"X.Odd!#$%&'*+^`|~-Name_9: 1",
)
_BAD_HEADERS: Final = (
    b"X Space: 1",
    b"Host: second.example",
    b"Content-Length: +3",
    b"Transfer-Encoding: gzip",
    b"Expect: the-unexpected",
    b"X-Control: a\x01b",
    b" folded: 1",
)
_STATUSES: Final = (
    (200, b" OK"),
    (201, b" Created"),
    (404, b" Not Found"),
    (500, b" Internal Server Error"),
    (503, b" Service Unavailable"),
    (204, b" No Content"),
    (304, b" Not Modified"),
    (200, b""),
    (302, b" Found \xe4 odd"),
)
_RESPONSE_HEADERS: Final = (
    b"Content-Type: application/json",
    b"Server: test",
    b"Date: Tue, 15 Nov 1994 08:12:31 GMT",
    b"Set-Cookie: a=b",
    b"Set-Cookie: c=d; Path=/",
    b"Cache-Control: no-store",
    b"Connection: keep-alive",
    b"ETag: x",
)
_ODD_RESPONSE_HEADERS: Final = (
    b"X-Request-Id: of-the-upstream",
    b"Via: 1.1 upstream",
    b"X-Empty:",
    b"x-PADDED:   a  ",
    b"X-Latin: \xe4",
    b"Keep-Alive: timeout=5",
    b"Connection: X-Hidden, Date",
    b"X-Hidden: 1",
    b"Trailer: X-A",
    b"Upgrade: h2c",
    b"Proxy-Authenticate: Basic",
    b"Content-Encoding: gzip",
    b"X-Long: " + b"y" * 9000,
)
_FAULTS: Final = (
    ("closes without a response", b""),
    ("closes within the head", b"HTTP/1.1 200 OK\r\nContent-Le"),
    ("closes within the body", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
    ("closes within a chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
    ("closes before the last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ("malformed chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
    ("no HTTP", b"220 smtp.example ESMTP\r\n\r\n"),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
    ("length and chunked", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("space before a colon", b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    ("line that ends in LF", b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok"),
    ("folded header", b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok"),
    ("switches protocols", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    ("bytes after the response", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"),
    ("a second response", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2),
)
