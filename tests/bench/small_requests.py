"""The small requests of the benchmark, byte for byte as clients send them."""

from __future__ import annotations

from tests.bench import load

_AGENT = b"Host: models.example.com\r\nUser-Agent: python-requests/2.32.3\r\nAccept: */*\r\n"
_JSON_TYPE = b"Content-Type: application/json\r\n"
_JSON = b'{"text": "' + b"j" * 988 + b'"}'
_FORM = load.FORM_HEAD + b"x" * 1000 + load.FORM_TAIL


def _post(headers: bytes, body: bytes) -> bytes:
    return b"POST /n/1000 HTTP/1.1\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


GET = b"GET /n/100 HTTP/1.1\r\n" + _AGENT + b"\r\n"
JSON = _post(_AGENT + _JSON_TYPE, _JSON)
FORM = _post(_AGENT + load.FORM_TYPE, _FORM)
#: With the headers that a client of a service behind a login sends: eleven, with Content-Length.
JSON_WITH_HEADERS = _post(
    _AGENT
    + b"Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n"
    + b"Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    + b"dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U\r\n"
    + _JSON_TYPE
    + b"X-Tenant: acme\r\nX-Model: resnet50\r\nCookie: session=0123456789abcdef; theme=dark\r\n",
    _JSON,
)
