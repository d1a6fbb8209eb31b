"""Plans: one exchange with its faults, and what may come of it."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field

from tests.peers import form


class ClientFault(enum.Enum):
    """What a client does wrong, at a random byte of its request."""

    NONE = "none"
    RESET = "reset"
    HALF_CLOSE = "half close"
    STALL = "stall"
    TRICKLE = "trickle"
    LEAVE = "leave without reading"
    SLOW_READ = "read slowly"
    BAD_HEAD = "malformed head"
    BAD_CHUNK = "malformed chunk"
    CUT_FORM = "form without its end"
    BAD_DIGEST = "wrong digest"


class UpstreamFault(enum.Enum):
    """What an upstream does."""

    NONE = "none"
    CHUNKED = "chunked response"
    BIG = "large response"
    CLOSE_DELIMITED = "response ended by close"
    INTERIM = "interim responses"
    ERROR = "500"
    EARLY = "early response, reads on"
    EARLY_CLOSE = "early response, closes"
    CLOSE = "closes without a response"
    RESET = "resets while it reads"
    RESET_IN_BODY = "resets within its response"
    CUT = "closes within its response"
    CUT_UNSIZED = "breaks a response that the close ends"
    CUT_CHUNKED = "closes within its chunked response"
    BAD_CHUNK = "malformed chunk"
    NOT_HTTP = "no HTTP"
    BAD_HEAD = "space before a colon"
    TWO_LENGTHS = "two lengths"
    STALL = "never responds"
    STALL_IN_BODY = "stalls within its response"
    TRICKLE = "trickles its response"
    SECOND_RESPONSE = "second response"


class BucketFault(enum.Enum):
    """What a bucket does."""

    NONE = "none"
    ERROR = "500"
    BUSY = "503"
    DENIED = "403"
    CLOSE = "closes without a response"
    RESET = "resets while it reads"
    LOST = "does as asked, closes without a response"
    CUT = "closes within its response"
    NOT_HTTP = "no HTTP"
    STALL = "never responds"
    STALL_IN_BODY = "stalls within its response"
    TRICKLE = "trickles its response"


#: They change nothing of how the exchange ends.
HARMLESS_CLIENT = frozenset({ClientFault.NONE, ClientFault.TRICKLE, ClientFault.SLOW_READ})
HARMLESS_UPSTREAM = frozenset(
    {
        *(UpstreamFault.NONE, UpstreamFault.CHUNKED, UpstreamFault.BIG, UpstreamFault.CLOSE_DELIMITED),
        *(UpstreamFault.INTERIM, UpstreamFault.ERROR, UpstreamFault.TRICKLE, UpstreamFault.SECOND_RESPONSE),
        *(UpstreamFault.EARLY, UpstreamFault.EARLY_CLOSE),
    }
)
#: No faults, but other ways to respond.
PLAIN_UPSTREAM = frozenset(
    {
        *(UpstreamFault.NONE, UpstreamFault.CHUNKED, UpstreamFault.BIG, UpstreamFault.CLOSE_DELIMITED),
        *(UpstreamFault.INTERIM, UpstreamFault.ERROR),
    }
)
#: By path: whether the request has a form, any body, or none.
FORMS = (
    "/inspect",
    "/opaque",
    "/strict",
    "/unwrap",
    "/split",
    "/split-raw",
    "/store",
    "/replace",
    "/digest",
    "/packed",
    *("/bucket-store", "/bucket-replace") * 2,
)
BODIES = ("/inspect", "/wrap", "/mirror", "/tee", "/store", "/replace", "/digest", "/bucket-store", "/bucket-replace")
BODILESS = ("/inspect", "/files/small", "/files/big", "/files/missing", "/fetch/", "/bucket-files/", "/bucket-files/")
#: The requests to a bucket, by whether something is stored.
BUCKET_METHODS = {True: ("HEAD", "PUT", "PUT", "POST", "POST", "DELETE"), False: ("HEAD", "GET", "GET")}
_SIZES = (1, 3000, 70_000, 400_000)


@dataclass
class Plan:
    """One exchange."""

    number: int
    path: str
    client: ClientFault
    upstream: UpstreamFault
    #: What the bucket does to requests of this method, and whether it does so only once.
    bucket: BucketFault = BucketFault.NONE
    bucket_method: str = ""
    is_bucket_mended: bool = False
    #: The object that is asked for.
    served: str = ""
    #: The bytes of the request, and where the client's fault strikes.
    head: bytes = b""
    body: bytes = b""
    at: int = 0
    #: The files in it.
    files: list[bytes] = field(default_factory=list)
    #: Whether the client has sent the whole request.
    is_sent: bool = False
    #: Whether a request of it has reached an upstream: before that an upstream's fault does not happen.
    is_reached: bool = False
    #: Whether its batch has been judged, and whether a request of it reached an upstream after that.
    is_judged: bool = False
    is_late: bool = False
    #: Bodies that an upstream received to their end.
    received: list[bytes] = field(default_factory=list)
    response: bytearray = field(default_factory=bytearray)
    was_reset: bool = False

    @property
    def id(self) -> str:
        """Its X-Request-Id."""
        return f"plan-{self.number}"

    @property
    def is_chunked(self) -> bool:
        """Whether its body is chunked."""
        return b"chunked" in self.head

    @property
    def blames(self) -> set[str]:
        """Who may be blamed."""
        found = {"none"}
        if self.client not in HARMLESS_CLIENT or self.path == "/files/missing" or self.served == "missing":
            found.add("client")
        if self.bucket not in (BucketFault.NONE, BucketFault.TRICKLE):
            found.add("upstream")
        # The response to a form is 207 where an upstream refused one of its files.
        is_refused = self.upstream in (UpstreamFault.ERROR, UpstreamFault.EARLY, UpstreamFault.EARLY_CLOSE)
        if self.upstream not in HARMLESS_UPSTREAM or (is_refused and self.path.startswith("/split")):
            found.add("upstream")
        return found


def make_plan(number: int, generator: random.Random, origin: str) -> Plan:
    """Return a random plan. Half of the faults are the client's, half the upstream's, some are both."""
    client = generator.choice(list(ClientFault)) if generator.random() < 0.55 else ClientFault.NONE
    upstream = generator.choice(list(UpstreamFault)) if generator.random() < 0.6 else UpstreamFault.NONE
    if client is ClientFault.CUT_FORM:
        path, kind = generator.choice([path for path in FORMS if path not in ("/opaque", "/packed")]), "form"
    elif client is ClientFault.BAD_DIGEST:
        path, kind = "/digest", "body"
    else:
        kind = generator.choice(["form", "form", "body", "none"])
        path = generator.choice({"form": FORMS, "body": BODIES, "none": BODILESS}[kind])
    plan = Plan(number, path, client, upstream)
    if path.startswith("/bucket"):
        _add_bucket(plan, generator, is_stored=kind != "none")
    _fill(plan, kind, generator, origin)
    return plan


def _add_bucket(plan: Plan, generator: random.Random, *, is_stored: bool) -> None:
    """Give a plan the fault of a bucket in place of that of an upstream."""
    if plan.upstream is not UpstreamFault.NONE:
        plan.upstream, plan.bucket = UpstreamFault.NONE, generator.choice(list(BucketFault))
        plan.bucket_method = generator.choice(BUCKET_METHODS[is_stored])
        plan.is_bucket_mended = generator.random() < 0.3
    if not is_stored:
        plan.served = generator.choice(["small", "big", "big", "missing"])


def _fill(plan: Plan, kind: str, generator: random.Random, origin: str) -> None:
    size = generator.choice(_SIZES)
    data = (b"%d." % plan.number * (size // 3 + 1))[:size]
    headers = ""
    if kind == "form":
        plan.files = [data, b"%d-second" % plan.number]
        names = [f'name="f{n}"; filename="{plan.id}-{n}.bin"' for n in range(2)]
        if plan.path == "/unwrap":
            plan.files, names = plan.files[:1], names[:1]
        plan.body = form(('name="note"', b"n"), *zip(names, plan.files, strict=True))
        headers = "Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n"
        if plan.client is ClientFault.CUT_FORM:
            plan.body = plan.body[: -generator.randrange(5, 40)]
    elif kind == "body":
        plan.files = [data]
        plan.body = data
        headers = f'Content-Disposition: attachment; filename="{plan.id}-0.bin"\r\n'
    if plan.client is ClientFault.BAD_DIGEST:
        headers += "Content-Digest: sha-256=:" + "A" * 43 + "=:\r\n"
    method = "GET" if kind == "none" else "POST"
    target = f"/fetch/{origin}/{plan.id}" if plan.path == "/fetch/" else plan.path
    target += plan.id if plan.served else ""
    is_chunked = kind != "none" and (plan.client is ClientFault.BAD_CHUNK or generator.random() < 0.3)
    if is_chunked:
        headers += "Transfer-Encoding: chunked\r\n"
        plan.body = _chunked(plan, generator)
    elif kind != "none":
        headers += f"Content-Length: {len(plan.body)}\r\n"
    head = f"{method} {target} HTTP/1.1\r\nHost: gw\r\nX-Request-Id: {plan.id}\r\nConnection: close\r\n{headers}\r\n"
    plan.head = head.encode()
    if plan.client is ClientFault.BAD_HEAD:
        at = plan.head.index(b"Host")
        plan.head = plan.head[:at] + generator.choice([b"Bad Name: x\r\n", b": x\r\n", b"X: \0\r\n"]) + plan.head[at:]
    # A client that stalls within its head is left to the timeout of heads, which has no key.
    first = len(plan.head) if plan.client is ClientFault.STALL else len(plan.head) // 2
    plan.at = generator.randrange(first, len(plan.head) + len(plan.body) + (not plan.body))


def _chunked(plan: Plan, generator: random.Random) -> bytes:
    pieces, rest = [], plan.body
    while rest:
        size = generator.choice([7, 1000, 65_536, 300_000])
        pieces.append(b"%x\r\n%s\r\n" % (len(rest[:size]), rest[:size]))
        rest = rest[size:]
        if len(pieces) > 50:
            pieces.append(b"%x\r\n%s\r\n" % (len(rest), rest) if rest else b"")
            break
    if plan.client is ClientFault.BAD_CHUNK:
        pieces.insert(generator.randrange(len(pieces) + 1), b"zz\r\nbroken\r\n")
    return b"".join(pieces) + b"0\r\n\r\n"
