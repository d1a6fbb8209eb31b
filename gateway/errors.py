"""Faults: every error of an exchange, each with its blame, code, status and outcome.

`FaultKind` is the only place that maps a cause to a status. The code that detects an error raises
`Fault(FaultKind.X, "what, where, how to mend")`; no other code translates it again. Rejected: one exception
class per cause (forty classes, and the table would be scattered over them).
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Final

from gateway import PSEUDONYM


class Blame(enum.StrEnum):
    """Whose fault an error was: client gives 4xx, gateway gives 500, 503 or 507, upstream gives 502 or 504.

    In ascending order: of several files, the one with the last of these blames decides for their exchange.
    """

    NONE = "none"
    CLIENT = "client"
    UPSTREAM = "upstream"
    GATEWAY = "gateway"


class Outcome(enum.StrEnum):
    """How a transfer ended: a closed set, the label `outcome` of `gateway_transfers_total`."""

    COMPLETE = "complete"
    EARLY_RESPONSE = "early_response"
    CLIENT_LEFT = "client_left"
    CLIENT_SLOW = "client_slow"
    CLIENT_BAD = "client_bad"
    LIMIT = "limit"
    REFUSED = "refused"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_SLOW = "upstream_slow"
    DISK_FAILED = "disk_failed"
    CANCELLED = "cancelled"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class FaultInfo:
    """Properties of a kind of fault; `proxy_error` is an error type of RFC 9209 section 2.3."""

    status: int
    blame: Blame
    outcome: Outcome
    proxy_error: str
    title: str


_C, _G, _U = Blame.CLIENT, Blame.GATEWAY, Blame.UPSTREAM
_BAD, _DENY = "http_request_error", "http_request_denied"
_OUT = Outcome


class FaultKind(enum.Enum):
    """Every cause of an error. The member's name in lower case is the `code` in problem documents and logs."""

    # The client's request head.
    BAD_REQUEST = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed request")
    BAD_FRAMING = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Ambiguous or broken framing")
    BAD_HOST = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed Host")
    BAD_TARGET = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed request target")
    URL_FORBIDDEN = FaultInfo(403, _C, _OUT.REFUSED, _DENY, "URL is not in the allow list")
    ADDRESS_FORBIDDEN = FaultInfo(403, _C, _OUT.REFUSED, "destination_ip_prohibited", "Address is denied")
    NO_ROUTE = FaultInfo(404, _C, _OUT.REFUSED, "destination_not_found", "No route matches")
    FILE_NOT_FOUND = FaultInfo(404, _C, _OUT.REFUSED, "destination_not_found", "File not found")
    METHOD_NOT_ALLOWED = FaultInfo(405, _C, _OUT.REFUSED, _DENY, "Method not allowed")
    FILE_EXISTS = FaultInfo(409, _C, _OUT.REFUSED, _DENY, "A file with this name exists")
    LENGTH_REQUIRED = FaultInfo(411, _C, _OUT.REFUSED, _BAD, "Length required")
    PRECONDITION_FAILED = FaultInfo(412, _C, _OUT.REFUSED, _DENY, "Precondition failed")
    TARGET_TOO_LONG = FaultInfo(414, _C, _OUT.LIMIT, _BAD, "Request target too long")
    RANGE_NOT_SATISFIABLE = FaultInfo(416, _C, _OUT.REFUSED, _BAD, "Range not satisfiable")
    EXPECTATION_FAILED = FaultInfo(417, _C, _OUT.REFUSED, _BAD, "Expectation failed")
    TYPE_NOT_ALLOWED = FaultInfo(415, _C, _OUT.REFUSED, _DENY, "File type not allowed")
    NOT_A_FORM = FaultInfo(415, _C, _OUT.REFUSED, _BAD, "Not a form")
    HEAD_TOO_LARGE = FaultInfo(431, _C, _OUT.LIMIT, _BAD, "Request head too large")
    # The client's body.
    BAD_MULTIPART = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed multipart body")
    PART_HEADERS_TOO_LARGE = FaultInfo(400, _C, _OUT.LIMIT, _BAD, "Part headers too large")
    BAD_FILE_NAME = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "File name cannot be used")
    BAD_DIGEST = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed digest")
    BAD_CODING = FaultInfo(400, _C, _OUT.CLIENT_BAD, _BAD, "Malformed compressed data")
    UNEXPECTED_PART = FaultInfo(422, _C, _OUT.REFUSED, _BAD, "Part cannot be forwarded")
    MALWARE_FOUND = FaultInfo(422, _C, _OUT.REFUSED, _DENY, "Malware found")
    LATE_FIELD = FaultInfo(422, _C, _OUT.REFUSED, _BAD, "No route for these form fields")
    DIGEST_MISMATCH = FaultInfo(422, _C, _OUT.CLIENT_BAD, _BAD, "Digest does not match")
    CLIENT_IDLE = FaultInfo(408, _C, _OUT.CLIENT_SLOW, _BAD, "Client idle for too long")
    CLIENT_TOO_SLOW = FaultInfo(408, _C, _OUT.CLIENT_SLOW, _BAD, "Client too slow")
    BODY_TOO_LARGE = FaultInfo(413, _C, _OUT.LIMIT, _BAD, "Body too large")
    PART_TOO_LARGE = FaultInfo(413, _C, _OUT.LIMIT, _BAD, "Part too large")
    FIELD_TOO_LARGE = FaultInfo(413, _C, _OUT.LIMIT, _BAD, "Form field too large")
    TOO_MANY_PARTS = FaultInfo(413, _C, _OUT.LIMIT, _BAD, "Too many parts")
    UNKNOWN_METHOD = FaultInfo(501, _C, _OUT.REFUSED, _BAD, "Method not implemented")
    #: Client closed the connection. 499 is nginx's code for it; it appears only in the log and the metrics.
    CLIENT_LEFT = FaultInfo(499, _C, _OUT.CLIENT_LEFT, _BAD, "Client closed the connection")
    #: Used in the response document of `split` for a file that was not sent because an earlier one failed.
    NOT_SENT = FaultInfo(424, _C, _OUT.REFUSED, _DENY, "Not sent")
    # The gateway.
    BUG = FaultInfo(500, _G, _OUT.BUG, "proxy_internal_error", "Internal error")
    DISK_FAILED = FaultInfo(500, _G, _OUT.DISK_FAILED, "proxy_internal_error", "Disk error")
    CANCELLED = FaultInfo(503, _G, _OUT.CANCELLED, "proxy_internal_error", "Cancelled by shutdown")
    OPERATOR_CANCELLED = FaultInfo(503, _G, _OUT.CANCELLED, "proxy_internal_error", "Cancelled by an operator")
    QUEUE_FULL = FaultInfo(503, _G, _OUT.REFUSED, "connection_limit_reached", "Queue for the upstream is full")
    QUEUE_TIMEOUT = FaultInfo(
        503, _G, _OUT.REFUSED, "connection_limit_reached", "Timeout in the queue for the upstream"
    )
    OUT_OF_DESCRIPTORS = FaultInfo(503, _G, _OUT.REFUSED, "proxy_internal_error", "Gateway is out of file descriptors")
    OUT_OF_MEMORY = FaultInfo(503, _G, _OUT.REFUSED, "proxy_internal_error", "Kernel has no memory for the gateway")
    OUT_OF_THREADS = FaultInfo(503, _G, _OUT.REFUSED, "proxy_internal_error", "Gateway cannot start a thread")
    DISK_UNAVAILABLE = FaultInfo(503, _G, _OUT.DISK_FAILED, "destination_unavailable", "Directory is unavailable")
    DISK_SLOW = FaultInfo(503, _G, _OUT.DISK_FAILED, "destination_unavailable", "Disk too slow")
    SCANNER_FAILED = FaultInfo(503, _G, _OUT.REFUSED, "proxy_internal_error", "Scanner is unavailable")
    DISK_FULL = FaultInfo(507, _G, _OUT.DISK_FAILED, "destination_unavailable", "Disk is full")
    # The upstream.
    DNS_ERROR = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, "dns_error", "Upstream's host name cannot be resolved")
    CONNECT_REFUSED = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, "connection_refused", "Upstream refused the connection")
    TLS_ERROR = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, "tls_protocol_error", "TLS handshake with the upstream failed")
    UPSTREAM_CLOSED = FaultInfo(
        502, _U, _OUT.UPSTREAM_FAILED, "connection_terminated", "Upstream closed the connection"
    )
    BAD_RESPONSE = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, "http_protocol_error", "Upstream's response is malformed")
    BAD_REDIRECT = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, _DENY, "Upstream's redirect is not allowed")
    RESPONSE_INCOMPLETE = FaultInfo(
        502, _U, _OUT.UPSTREAM_FAILED, "http_response_incomplete", "Upstream's response body is incomplete"
    )
    OBJECT_STORE_FAILED = FaultInfo(502, _U, _OUT.UPSTREAM_FAILED, "destination_unavailable", "Object store failed")
    RESPONSE_TOO_LARGE = FaultInfo(
        502, _U, _OUT.UPSTREAM_FAILED, "http_response_body_size", "Upstream's response is too large"
    )
    CONNECT_TIMEOUT = FaultInfo(504, _U, _OUT.UPSTREAM_SLOW, "connection_timeout", "Timeout connecting to the upstream")
    RESPONSE_TIMEOUT = FaultInfo(
        504, _U, _OUT.UPSTREAM_SLOW, "http_response_timeout", "Timeout waiting for the upstream's response"
    )
    UPSTREAM_IDLE = FaultInfo(504, _U, _OUT.UPSTREAM_SLOW, "connection_read_timeout", "Upstream idle for too long")
    UPSTREAM_STUCK = FaultInfo(504, _U, _OUT.UPSTREAM_SLOW, "connection_write_timeout", "Upstream stopped reading")

    # Enum turns members of equal value into aliases of the first: a number makes each value unique.
    def __new__(cls, info: FaultInfo) -> FaultKind:
        """Create a member whose value is its number and which carries its FaultInfo."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member._info = info
        return member

    _info: FaultInfo

    @property
    def info(self) -> FaultInfo:
        """Status, blame, outcome, RFC 9209 error type and title."""
        return self._info

    @property
    def code(self) -> str:
        """The code in problem documents, logs and metrics, for example `body_too_large`."""
        return self.name.lower()


class Fault(Exception):
    """An error of an exchange, with what a user needs to mend it.

    `detail` says what happened, where, and how to mend it; for a limit it gives both numbers. It may be sent to the
    client, so it contains no local address and no path; `reason` is for the log only, and may. `retry_after_seconds`
    becomes the Retry-After header; `facts` are added to the problem document; `headers` are added to the response
    (Allow, Content-Range).
    """

    def __init__(
        self,
        kind: FaultKind,
        detail: str,
        *,
        reason: str = "",
        retry_after_seconds: int | None = None,
        facts: dict[str, int | str] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.facts = facts or {}
        self.headers = headers

    @property
    def status(self) -> int:
        """HTTP status of the response, if the response head was not sent yet."""
        return self.kind.info.status

    @property
    def blame(self) -> Blame:
        """Whose fault the error was."""
        return self.kind.info.blame

    @property
    def outcome(self) -> Outcome:
        """The outcome of the exchange's transfers."""
        return self.kind.info.outcome

    def drop_tracebacks(self) -> None:
        """Drop its traceback and those of its causes: their frames refer to what remembers the fault.

        A hundred objects for each exchange that failed would wait for the garbage collector, which stops the loop.
        """
        exceptions: list[BaseException | None] = [self]
        while exceptions:
            exc = exceptions.pop()
            if exc is not None:
                exc.__traceback__ = None
                exceptions += (exc.__cause__, exc.__context__)
                exc.__cause__ = exc.__context__ = None

    def __str__(self) -> str:
        """Return code and detail, for logs."""
        return f"{self.kind.code}: {self.detail}"


PROBLEM_TYPE: Final = b"application/problem+json"


def problem_document(fault: Fault, *, route: str | None, upstream: str | None, request_id: str) -> bytes:
    """Return the RFC 9457 problem document of a fault, as UTF-8 JSON ending in a newline."""
    document: dict[str, int | str | None] = {
        "title": fault.kind.info.title,
        "status": fault.status,
        "detail": fault.detail,
        "code": fault.kind.code,
        "route": route,
        "upstream": upstream,
        "request_id": request_id,
    }
    return json.dumps(document | fault.facts).encode() + b"\n"


def proxy_status(fault: Fault) -> bytes:
    """Return the value of the Proxy-Status header (RFC 9209 section 2)."""
    info = fault.kind.info
    # A String of RFC 8941 section 3.3.3 is printable ASCII; titles contain no quote, so nothing is escaped.
    return f'{PSEUDONYM}; error={info.proxy_error}; details="{info.title}"'.encode("ascii")
