"""Cases: an action on a lane, and who is slow in it."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.observe.stats import Leg
from tests.peers import chunked, form, post


class Party(enum.Enum):
    """Who is slow."""

    SENDER = "client that sends"
    READER = "client that reads"
    SLOT = "slot"
    CONNECT = "handshake of the upstream"
    UPSTREAM_READER = "upstream that reads"
    SERVICE = "service"
    UPSTREAM_SENDER = "upstream that sends"
    OBSERVER = "observer"
    TRANSFORM = "transform"
    DISK = "disk"
    BUCKET = "bucket"


LEGS = {
    Party.SENDER: Leg.DOWNSTREAM_READ,
    Party.READER: Leg.DOWNSTREAM_WRITE,
    Party.SLOT: Leg.QUEUE,
    Party.CONNECT: Leg.CONNECT,
    Party.UPSTREAM_READER: Leg.UPSTREAM_WRITE,
    Party.SERVICE: Leg.UPSTREAM_RESPONSE,
    Party.UPSTREAM_SENDER: Leg.UPSTREAM_READ,
    Party.OBSERVER: Leg.FILTER,
    Party.TRANSFORM: Leg.FILTER,
}
_UPSTREAM = (Party.SLOT, Party.CONNECT, Party.SERVICE, Party.UPSTREAM_SENDER)
_UPLOAD = (Party.SENDER, Party.OBSERVER, Party.TRANSFORM)
_FORWARD = (*_UPSTREAM, *_UPLOAD, Party.UPSTREAM_READER, Party.READER)
_UP = {"upstream": "up"}
_SPLIT = {**_UP, "max_response_bytes": "10MiB"}
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


@dataclass(frozen=True)
class Action:
    """An action of a route."""

    #: Of its requests: "form", "raw" or "none".
    body: str
    #: Keys of the route; `DIRECTORY`, `URL` and `BUCKET` stand for where it runs.
    keys: dict[str, Any]
    parties: tuple[Party, ...]
    #: Whether files of one form are sent at once.
    may_overlap: bool = False


ACTIONS = {
    "inspect": Action("form", {"forward": _UP}, _FORWARD),
    "opaque": Action(
        "form",
        {"forward": {**_UP, "multipart": "opaque"}},
        (*_UPSTREAM, Party.SENDER, Party.UPSTREAM_READER, Party.READER),
    ),
    "strict": Action("form", {"forward": {**_UP, "multipart": "strict"}}, _FORWARD),
    "unwrap": Action("form", {"forward": {**_UP, "body": "raw"}}, _FORWARD),
    "wrap": Action("raw", {"forward": {**_UP, "body": "multipart"}}, _FORWARD),
    "raw": Action("raw", {"forward": _UP}, _FORWARD),
    "none": Action("none", {"forward": _UP}, (*_UPSTREAM, Party.READER)),
    "compress": Action("form", {"forward": _UP, "filters": ["compress"]}, _FORWARD),
    "sniff": Action("raw", {"forward": _UP, "filters": ["digest", {"sniff": {"allow": ["image/*"]}}]}, _FORWARD),
    "mirror": Action("form", {"forward": {**_UP, "mirror": {"upstream": "mirror"}}}, _FORWARD),
    "tee": Action("raw", {"forward": {**_UP, "mirror": {"directory": "DIRECTORY"}}}, _FORWARD),
    "split": Action("form", {"split": _SPLIT}, (*_UPSTREAM, *_UPLOAD, Party.UPSTREAM_READER), may_overlap=True),
    "split raw": Action(
        "form", {"split": {**_SPLIT, "body": "raw"}}, (*_UPSTREAM, *_UPLOAD, Party.UPSTREAM_READER), may_overlap=True
    ),
    "fetch": Action(
        "none",
        {"fetch": {"allow": ["URL/"], "private_networks": "allow"}},
        (Party.CONNECT, Party.SERVICE, Party.UPSTREAM_SENDER, Party.READER),
    ),
    "store": Action("form", {"store": {"directory": "DIRECTORY"}}, (*_UPLOAD, Party.DISK)),
    "store raw": Action("raw", {"store": {"directory": "DIRECTORY"}}, (*_UPLOAD, Party.DISK)),
    "files": Action("none", {"files": {"directory": "DIRECTORY"}}, (Party.DISK, Party.READER)),
    "bucket store": Action("form", {"store": "BUCKET"}, (*_UPLOAD, Party.BUCKET)),
    "bucket files": Action("none", {"files": "BUCKET"}, (Party.BUCKET, Party.READER)),
}
#: Where a disk or a bucket is slow, by whether something is stored.
DISK_CALLS = {True: ("CREATE", "WRITE", "FSYNC", "LINK"), False: ("LOOKUP", "OPEN", "READ")}
BUCKET_CALLS = {True: (b"HEAD", b"PUT"), False: (b"HEAD", b"GET")}
RESPONSES = ("sized", "chunked", "closed")
SMALL_BYTES, LARGE_BYTES = 3000, 600_000
#: More than socket buffers take.
HUGE = PNG + random.Random(1).randbytes(8_000_000)


@dataclass(frozen=True)
class Case:
    """One exchange."""

    action: str
    party: Party
    seed: int
    lanes: str
    #: Whether bodies of any size are moved below the transports.
    is_raw: bool
    is_large: bool
    is_chunked: bool
    response: str
    is_client_tls: bool
    is_upstream_tls: bool

    def __str__(self) -> str:
        """Return a name for the test."""
        flags = [name.removeprefix("is_") for name, value in vars(self).items() if value is True]
        return "-".join([self.action, self.party.value, self.lanes, self.response, *flags, str(self.seed)])

    @property
    def is_stored(self) -> bool:
        """Whether the action stores what is sent."""
        return "store" in self.action

    @property
    def needs_bucket(self) -> bool:
        """Whether the action uses a bucket."""
        return self.action.startswith("bucket")

    @property
    def leg(self) -> Leg:
        """The leg to be charged."""
        if self.party is Party.DISK:
            return Leg.DISK_WRITE if self.is_stored else Leg.DISK_READ
        if self.party is Party.BUCKET:
            return Leg.UPSTREAM_WRITE if self.is_stored else Leg.UPSTREAM_READ
        return LEGS[self.party]

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return LARGE_BYTES if self.is_large else SMALL_BYTES

    @property
    def file(self) -> bytes:
        """The file that is sent."""
        return HUGE if self.party is Party.UPSTREAM_READER else HUGE[: self.size]

    @property
    def downloaded(self) -> bytes:
        """The body of responses of the upstream, and the file that is served."""
        return HUGE if self.party is Party.READER else HUGE[: self.size]

    def request(self, origin: str) -> tuple[bytes, bytes]:
        """Return the head and the body of the request."""
        action = ACTIONS[self.action]
        if action.body == "none":
            target = f"/{origin}/x" if self.action == "fetch" else "/file"
            return f"GET {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n".encode(), b""
        if action.body == "form":
            files = [self.file] if self.action == "unwrap" else [self.file, HUGE[:100]]
            parts = [(f'name="f{n}"; filename="{n}.bin"', data) for n, data in enumerate(files)]
            request = post(form(("name=a", b"1"), *parts), target="/up")
        else:
            request = post(self.file, target="/up/raw.bin", content_type="image/png")
        head, _, body = request.partition(b"\r\n\r\n")
        if self.is_chunked:
            half = len(body) // 2
            head = head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked"
            body = chunked(body[:half], body[half:])
        return head + b"\r\n\r\n", body


def make_cases(seed: int, count: int) -> Iterator[Case]:
    """Yield random cases: one for every action, one for every party, then any."""
    generator = random.Random(seed)
    for number in range(count):
        pairs = [(action, party) for action, entry in ACTIONS.items() for party in entry.parties]
        if number < len(ACTIONS):
            pairs = [pair for pair in pairs if pair[0] == list(ACTIONS)[number]]
        elif number < len(ACTIONS) + len(Party):
            pairs = [pair for pair in pairs if pair[1] is list(Party)[number - len(ACTIONS)]]
        action, party = generator.choice(pairs)
        is_tls = party is Party.CONNECT or generator.random() < 0.25
        has_upstream = any(each in _UPSTREAM for each in ACTIONS[action].parties)
        yield Case(
            action,
            party,
            generator.randrange(1000),
            lanes=generator.choice(["auto", "auto", "copy"]),
            is_raw=generator.random() < 0.5,
            is_large=generator.random() < 0.5,
            is_chunked=ACTIONS[action].body != "none" and generator.random() < 0.3,
            response=generator.choice(RESPONSES),
            is_client_tls=generator.random() < 0.25,
            is_upstream_tls=has_upstream and is_tls,
        )
