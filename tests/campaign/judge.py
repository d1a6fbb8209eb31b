"""What is right of what clients, upstreams and storages received."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tests.campaign.plans import BucketFault, ClientFault, Plan, UpstreamFault
from tests.campaign.upstreams import WHOLE


@dataclass(frozen=True)
class Response:
    """A response that a client received whole."""

    status: int
    body: bytes


def whole_response(plan: Plan) -> Response | None:
    """Return the response to a plan, None if it is not whole. Raises ValueError if it is longer than its length."""
    head, end, body = bytes(plan.response).partition(b"\r\n\r\n")
    if not end:
        return None
    while head.startswith(b"HTTP/1.1 1"):
        head, _, body = body.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        if not body.endswith(b"0\r\n\r\n"):
            return None
        body = unchunk(body)
    elif b"content-length: " in lower:
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(body) > length:
            raise ValueError("too long")
        if len(body) < length:
            return None
    elif plan.was_reset or not head:
        return None
    return Response(int(head.split()[1]), body)


def is_response_right(plan: Plan) -> bool:
    """Return whether a response that looks whole is one that the upstream or the gateway has sent whole."""
    if b"evil" in plan.response:
        return False
    try:
        response = whole_response(plan)
    except ValueError:
        return False
    if response is None or not response.body or response.body in WHOLE:
        return True
    # The gateway's own responses are JSON.
    return b"json" in plan.response.lower()


def unchunk(body: bytes) -> bytes:
    """Return the data of a chunked body."""
    data = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        data, body = data + body[:size], body[size + 2 :]
        if not size:
            break
    return data


def is_received_right(plan: Plan) -> bool:
    """Return whether every body an upstream received to its end is one that the client has sent to its end."""
    if plan.path in ("/split", "/split-raw"):
        # Each file stands alone: those before a cut are whole.
        return all(any(file in body for file in plan.files) for body in plan.received)
    if not plan.received:
        return True
    is_broken = plan.client in (ClientFault.BAD_CHUNK, ClientFault.CUT_FORM, ClientFault.BAD_DIGEST)
    if not plan.is_sent and plan.upstream in (UpstreamFault.EARLY, UpstreamFault.EARLY_CLOSE):
        return True
    if plan.path == "/packed":
        return plan.is_sent
    return plan.is_sent and not is_broken and all(all(file in body for file in plan.files) for body in plan.received)


def is_stored_right(plan: Plan, stored: Mapping[str, bytes], *, is_disturbed: bool) -> bool:
    """Return whether what is stored is what the response says: all files with 201, none with an error."""
    try:
        response = whole_response(plan)
    except ValueError:
        return False
    if response is None or ("store" not in plan.path and "replace" not in plan.path):
        return True
    mine = {name: data for name, data in stored.items() if name.startswith(plan.id + "-")}
    if response.status == 201:
        return all(
            mine.get(file["name"]) == data
            for file, data in zip(json.loads(response.body)["files"], plan.files, strict=True)
        )
    # What a bucket has done although it did not say so cannot be undone.
    is_unsaid = plan.is_reached and plan.bucket not in (BucketFault.NONE, BucketFault.TRICKLE)
    return not mine or is_unsaid or is_disturbed
