"""Single faults against the gateway, nginx, HAProxy and Envoy, with the same client and upstream."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import available, run_peer
from tests.campaign.clients import HungError, run_client
from tests.campaign.judge import unchunk
from tests.campaign.plans import ClientFault, Plan, UpstreamFault
from tests.campaign.upstreams import CampaignUpstream

PEERS = ("gateway", "nginx", "haproxy", "envoy")
_BODY = b"request body." * 30_000
_CUT = (UpstreamFault.CUT, UpstreamFault.CUT_CHUNKED, UpstreamFault.BAD_CHUNK, UpstreamFault.RESET_IN_BODY)
_WAIT_SECONDS = 4.0


@dataclass(frozen=True)
class Case:
    """One fault."""

    name: str
    client: ClientFault = ClientFault.NONE
    upstream: UpstreamFault = UpstreamFault.NONE
    is_chunked: bool = False
    #: Headers added to the request.
    headers: str = ""


CASES = (
    Case("client resets within its body", ClientFault.RESET),
    Case("client resets within its chunked body", ClientFault.RESET, is_chunked=True),
    Case("client closes its side within its body", ClientFault.HALF_CLOSE),
    Case("client sends a malformed chunk", ClientFault.BAD_CHUNK, is_chunked=True),
    Case("client sends a malformed head", ClientFault.BAD_HEAD),
    Case("client sends Content-Length and chunked", is_chunked=True, headers="Content-Length: 5\r\n"),
    Case("client sends two lengths", headers="Content-Length: 5\r\n"),
    *(
        Case(f"upstream: {fault.value}", upstream=fault)
        for fault in (
            *(UpstreamFault.CLOSE, UpstreamFault.RESET, UpstreamFault.CUT, UpstreamFault.CUT_CHUNKED),
            *(UpstreamFault.BAD_CHUNK, UpstreamFault.RESET_IN_BODY, UpstreamFault.NOT_HTTP, UpstreamFault.BAD_HEAD),
            *(UpstreamFault.TWO_LENGTHS, UpstreamFault.EARLY, UpstreamFault.EARLY_CLOSE, UpstreamFault.INTERIM),
            *(UpstreamFault.SECOND_RESPONSE, UpstreamFault.STALL_IN_BODY),
        )
    ),
)


async def compare(directory: Path) -> list[list[str]]:
    """Return a row per fault, with a column per peer of this machine."""
    names = [name for name in PEERS if name in available()]
    rows = [["fault", *names]] + [[case.name] for case in CASES]
    for name in names:
        async with CampaignUpstream(random.Random(0)) as upstream:
            port = int(upstream.url.rpartition(":")[2])
            with run_peer(name, port, directory) as peer:
                for number, case in enumerate(CASES, 1):
                    plan = _make_plan(number, case)
                    upstream.plans[number] = plan
                    rows[number].append(await _observe(plan, case, peer.port, upstream))
    return rows


def _make_plan(number: int, case: Case) -> Plan:
    plan = Plan(number, "/inspect", case.client, case.upstream)
    headers = case.headers
    if case.is_chunked:
        headers += "Transfer-Encoding: chunked\r\n"
        bad = b"zz\r\nbroken\r\n" if case.client is ClientFault.BAD_CHUNK else b""
        half = len(_BODY) // 2
        plan.body = b"%x\r\n%s\r\n" % (half, _BODY[:half]) + bad + b"%x\r\n%s\r\n0\r\n\r\n" % (half, _BODY[half:])
    else:
        headers += f"Content-Length: {len(_BODY)}\r\n"
        plan.body = _BODY
    if case.client is ClientFault.BAD_HEAD:
        headers += "Bad Name: x\r\n"
    head = f"POST /{plan.id} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Type: a/b\r\n{headers}\r\n"
    plan.head, plan.files = head.encode(), [_BODY]
    plan.at = len(plan.head) + len(plan.body) // 2
    return plan


async def _observe(plan: Plan, case: Case, port: int, upstream: CampaignUpstream) -> str:
    """Run one fault; return what came of it, in a few words."""
    started = time.monotonic()
    client = asyncio.create_task(run_client(plan, port, random.Random(plan.number)), name="client")
    done, _ = await asyncio.wait([client], timeout=_WAIT_SECONDS)
    seconds = time.monotonic() - started
    client.cancel()
    results = await asyncio.gather(client, return_exceptions=True)
    if case.client is ClientFault.RESET:
        # The upstream sees the cut, or the end of the request, a little later.
        await asyncio.sleep(0.2)
    await upstream.cut_stalled()
    is_hung = not done or isinstance(results[0], HungError)
    seen = "whole request" if plan.received else "no whole request"
    is_false = _is_false_whole(plan, case)
    time_text = f"> {_WAIT_SECONDS:g} s" if is_hung else f"{seconds:.2f} s"
    mark = " **taken for whole**" if is_false else ""
    if case.client is ClientFault.RESET:
        return f"{seen}{mark}"
    return f"{_describe(plan, is_hung=is_hung)}{mark}; {time_text}; {seen}"


def _is_false_whole(plan: Plan, case: Case) -> bool:
    is_cut = case.client in (ClientFault.RESET, ClientFault.HALF_CLOSE, ClientFault.BAD_CHUNK)
    if is_cut and plan.received:
        return True
    return case.upstream in _CUT and b" 200 " in plan.response[:16] and _is_whole(plan)


def _is_whole(plan: Plan) -> bool:
    """Return whether a client takes the response for whole."""
    head, end, body = bytes(plan.response).partition(b"\r\n\r\n")
    lower = head.lower()
    if not end or plan.was_reset:
        return False
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n") and bool(unchunk(body))
    if b"content-length: " in lower:
        return len(body) == int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return True


def _describe(plan: Plan, *, is_hung: bool) -> str:
    response = bytes(plan.response)
    while response.startswith(b"HTTP/1.1 1"):
        response = response.partition(b"\r\n\r\n")[2]
    if not response.startswith(b"HTTP/1."):
        if is_hung:
            return "no response yet"
        return "reset" if plan.was_reset else "closed without a response"
    plan.response = bytearray(response)
    status = response.split(b" ", 2)[1].decode()
    if _is_whole(plan):
        return status
    return f"{status}, begun" if is_hung else f"{status}, cut"
