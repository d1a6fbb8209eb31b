"""Says in words what is wrong now, and whose fault it is: the client's, an upstream's or the gateway's. Pure.

A healthy transfer waits all the time, too: for the slower of its two sides. So a wait counts from a few seconds on, and
a transfer that moves counts as slow only if it is far from its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypedDict

from gateway.errors import Blame, FaultKind, Outcome
from gateway.observe.live import FAILURES_KEPT, FailureRow, TransferRow
from gateway.observe.report import UpstreamRow
from gateway.observe.stats import Leg
from gateway.observe.units import show_bytes, show_seconds

#: How long a leg must have been waited for to be worth a word.
_QUEUE_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 1.0
_STALL_SECONDS: Final = 5.0
#: Services that compute take a while.
_RESPONSE_SECONDS: Final = 10.0
#: A transfer is slow below this rate, once it is this old and if it needs that much longer.
_SLOW_BYTES_PER_SECOND: Final = 256_000
_SLOW_AGE_SECONDS: Final = 10.0
_SLOW_ETA_SECONDS: Final = 30.0
#: Clients named in one text.
_CLIENTS_NAMED: Final = 2
#: Transfers of one problem whose ids are given, the first.
_IDS_GIVEN: Final = 20

_GATEWAY_LEGS: Final = frozenset({Leg.DISK_WRITE, Leg.DISK_READ, Leg.FILTER})
_CLIENT_LEGS: Final = frozenset({Leg.DOWNSTREAM_READ, Leg.DOWNSTREAM_WRITE})
_LIMITS: Final = {
    Leg.QUEUE: _QUEUE_SECONDS,
    Leg.CONNECT: _CONNECT_SECONDS,
    Leg.UPSTREAM_RESPONSE: _RESPONSE_SECONDS,
}
#: Requests that got no slot of the upstream.
_QUEUE_CODES: Final = frozenset({FaultKind.QUEUE_FULL.code, FaultKind.QUEUE_TIMEOUT.code})
#: What is waited for, after "wait for".
_STALLS: Final = {
    Leg.DOWNSTREAM_READ: "the client to send",
    Leg.DOWNSTREAM_WRITE: "the client to read",
    Leg.UPSTREAM_WRITE: "{upstream} to read",
    Leg.UPSTREAM_READ: "{upstream} to send the rest of its response",
    Leg.DISK_WRITE: "the disk to write",
    Leg.DISK_READ: "the disk to read",
    Leg.FILTER: "a filter",
    Leg.CONNECT: "a connection to {upstream}",
    Leg.UPSTREAM_RESPONSE: "the response of {upstream}",
}
_CAUSES: Final = {
    Leg.DOWNSTREAM_READ: "the client sends slowly",
    Leg.DOWNSTREAM_WRITE: "the client reads slowly",
    Leg.UPSTREAM_WRITE: "{upstream} reads slowly",
    Leg.UPSTREAM_READ: "{upstream} sends slowly",
    Leg.DISK_WRITE: "the disk writes slowly",
    Leg.DISK_READ: "the disk reads slowly",
    Leg.FILTER: "a filter takes the time",
}


class Problem(TypedDict):
    """One thing that is wrong, in words."""

    severity: Literal["error", "warning"]
    blame: Literal["client", "upstream", "gateway"]
    route: str | None
    upstream: str | None
    #: What is waited for; None for what is not a wait.
    leg: str | None
    #: Ids of the transfers that wait or are slow; at most 20.
    transfers: list[str]
    text: str


@dataclass(slots=True)
class _Group:
    """Transfers of one route that wait for the same thing."""

    count: int = 0
    longest_seconds: float = 0.0
    bytes_per_second: int = 0
    clients: dict[str, None] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)


#: Whether they stand still; route, upstream, direction, leg.
_Key = tuple[bool, str, str, str, Leg]


class Diagnosis:
    """Takes the transfers one by one, so that thousands of them can be looked at in slices."""

    def __init__(self) -> None:
        self._groups: dict[_Key, _Group] = {}

    def add(self, row: TransferRow) -> None:
        """Look at one transfer."""
        leg = Leg(row["waiting_on"])
        is_still = row["waiting_seconds"] >= _LIMITS.get(leg, _STALL_SECONDS)
        if leg is Leg.UPSTREAM_READ and row["length"] is None:
            # A stream of events may be silent.
            return
        if not is_still:
            if not _is_slow(row):
                return
            leg = Leg(max(row["wait_seconds"], key=row["wait_seconds"].__getitem__, default=leg))
            if leg not in _CAUSES:
                return
        key = (is_still, row["route"] or "", row["upstream"] or "", row["direction"], leg)
        group = self._groups.setdefault(key, _Group())
        group.count += 1
        group.longest_seconds = max(group.longest_seconds, row["waiting_seconds"])
        group.bytes_per_second += row["bytes_per_second"]
        if len(group.clients) <= _CLIENTS_NAMED:
            group.clients[row["client"]] = None
        if len(group.ids) < _IDS_GIVEN:
            group.ids.append(row["id"])

    def problems(self, upstreams: Sequence[UpstreamRow], failures: Iterable[FailureRow]) -> list[Problem]:
        """Return what is wrong, the worst first. `failures` are those of the last minute."""
        by_name = {upstream["upstream"]: upstream for upstream in upstreams}
        waits = sorted(self._groups.items(), key=lambda item: item[1].count, reverse=True)
        found = [
            *(problem for upstream in upstreams for problem in _of_endpoints(upstream)),
            *_of_failures(failures),
            *(_of_waits(key, group, by_name) for key, group in waits),
        ]
        return sorted(found, key=lambda problem: problem["severity"] != "error")


def _is_slow(row: TransferRow) -> bool:
    eta = row["eta_seconds"]
    return (
        eta is not None
        and eta >= _SLOW_ETA_SECONDS
        and row["seconds"] >= _SLOW_AGE_SECONDS
        and row["bytes_per_second"] < _SLOW_BYTES_PER_SECOND
    )


def _of_waits(key: _Key, group: _Group, upstreams: dict[str, UpstreamRow]) -> Problem:
    is_still, route, upstream, direction, leg = key
    is_many = group.count != 1
    noun = "request" if leg in _LIMITS else direction
    who = f"{group.count} {noun}{'s' * is_many}" + (f" on `{route}`" if route else "")
    verb = "wait" if is_many else "waits"
    longest = (
        f"the longest for {show_seconds(group.longest_seconds)}" if is_many else show_seconds(group.longest_seconds)
    )
    name = f"upstream {upstream}" if upstream else "the upstream"
    clients = f" ({_name_clients(group)})" if leg in _CLIENT_LEGS else ""
    if leg is Leg.QUEUE:
        row = upstreams.get(upstream)
        slots = f": {row['in_flight']} of {row['slots']} slots busy, queue {row['queue_length']}" if row else ""
        text = f"{who} {verb} for {name}{slots}, {longest}"
    elif is_still:
        text = f"{who} {verb} for {_STALLS[leg].format(upstream=name)}{clients}, {longest}"
    else:
        rate = f"{show_bytes(group.bytes_per_second)}/s" + (" in all" if is_many else "")
        text = f"{who} {'are' if is_many else 'is'} slow, {rate}: {_CAUSES[leg].format(upstream=name)}{clients}"
    blame: Literal["client", "upstream", "gateway"] = (
        "client" if leg in _CLIENT_LEGS else "gateway" if leg in _GATEWAY_LEGS else "upstream"
    )
    return {
        "severity": "warning",
        "blame": blame,
        "route": route or None,
        "upstream": upstream or None,
        "leg": leg.value,
        "transfers": group.ids,
        "text": text,
    }


def _name_clients(group: _Group) -> str:
    names = list(group.clients)
    return ", ".join(names[:_CLIENTS_NAMED]) + (" and others" if len(names) > _CLIENTS_NAMED else "")


def _of_endpoints(upstream: UpstreamRow) -> Iterator[Problem]:
    name, endpoints = upstream["upstream"], upstream["endpoints"]
    down = [each for each in endpoints if not each["is_up"]]
    if not down:
        return
    why = "; ".join(f"{each['endpoint']}: {each['reason'] or 'down'}" for each in down[:_CLIENTS_NAMED])
    is_whole = len(down) == len(endpoints)
    are_down = f"{'is' if len(down) == 1 else 'are'} down ({why})"
    part = f"{len(down)} of {len(endpoints)} endpoints of upstream {name} {are_down}"
    text = f"Upstream {name} is down ({why})" if is_whole else part
    yield {
        "severity": "error" if is_whole else "warning",
        "blame": "upstream",
        "route": None,
        "upstream": name,
        "leg": None,
        "transfers": [],
        "text": text,
    }


def _of_failures(failures: Iterable[FailureRow]) -> Iterator[Problem]:
    counts: dict[tuple[str, str, str, str], int] = {}
    kept: Counter[tuple[int, str]] = Counter()
    for failure in failures:
        kept[failure["worker"], failure["blame"]] += 1
        # What an operator or a stop cancelled did not fail.
        if failure["blame"] != Blame.CLIENT and failure["outcome"] != Outcome.CANCELLED:
            code = failure["code"] or failure["outcome"]
            key = (failure["blame"], failure["route"] or "", failure["upstream"] or "", code)
            counts[key] = counts.get(key, 0) + 1
    # Earlier ones of the last minute may have been dropped.
    incomplete = {blame for (_, blame), count in kept.items() if count >= FAILURES_KEPT}
    for (blame, route, upstream, code), count in sorted(counts.items(), key=lambda item: item[1], reverse=True):
        who = f"{'At least ' * (blame in incomplete)}{count} request{'s' * (count != 1)}"
        where = (f" on `{route}`" if route else "") + " in the last minute"
        name = f"upstream {upstream}" if upstream else "the upstream"
        is_queue = code in _QUEUE_CODES
        if is_queue:
            why = f"because no slot of {name} was free"
        else:
            why = f"because of {name if blame == Blame.UPSTREAM else 'the gateway'}"
        yield {
            "severity": "error",
            "blame": "upstream" if blame == Blame.UPSTREAM else "gateway",
            "route": route or None,
            "upstream": upstream or None,
            "leg": Leg.QUEUE.value if is_queue else None,
            "transfers": [],
            "text": f"{who} failed{where} {why}: {code}",
        }
