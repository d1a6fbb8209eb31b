"""Batches of exchanges on one gateway, and the checks after each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import itertools
import json
import os
import random
import resource
import sys
import warnings
from asyncio.constants import ACCEPT_RETRY_DELAY
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.config import parse_config
from tests.campaign.buckets import run_bucket
from tests.campaign.clients import HungError, run_client
from tests.campaign.config import make_config
from tests.campaign.judge import is_received_right, is_response_right, is_stored_right
from tests.campaign.plans import PLAIN_UPSTREAM, BucketFault, ClientFault, Plan, make_plan
from tests.campaign.upstreams import CampaignUpstream
from tests.certificates import Certificate, make_certificate
from tests.leaks import LogRecords, open_descriptors
from tests.peers import run_gateway

CLIENTS = 16
#: What happens to the gateway while a batch runs.
EVENTS = ("none", "none", "none", "reload", "cancel", "descriptors", "full disk")
_SETTLE_SECONDS = 10.0
#: How the names of tasks begin that must have ended.
_TASKS = ("mirror", "client", "read", "put ", "commit ", "abort ")
_SPARE_DESCRIPTORS = (30, 45, 60)


@dataclass
class Summary:
    """What came of a campaign."""

    exchanges: int = 0
    faults: int = 0
    hangs: list[str] = field(default_factory=list)
    false_wholes: list[str] = field(default_factory=list)
    wrong_blames: list[str] = field(default_factory=list)
    missing_lines: list[str] = field(default_factory=list)
    wrong_legs: list[str] = field(default_factory=list)
    stray_lines: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    #: Requests that an upstream read only after their batch, by the event of that: they waited in its backlog.
    late_requests: collections.Counter[str] = field(default_factory=collections.Counter)
    #: Faults by name, outcomes of exchanges.
    by_fault: collections.Counter[str] = field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def findings(self) -> list[str]:
        """Everything that is wrong."""
        kinds = ("hangs", "false_wholes", "wrong_blames", "missing_lines", "wrong_legs", "stray_lines", "leaks")
        return [f"{kind}: {text}" for kind in kinds for text in getattr(self, kind)]


class Campaign:
    """One seed on one gateway."""

    def __init__(self, seed: int, directory: Path, lanes: str, summary: Summary) -> None:
        self._generator = random.Random(seed)
        self._directory = directory / "stored"
        #: `auto` or `copy`; `tls` for TLS with clients and upstreams.
        self._lanes = lanes
        self._certificate: Certificate | None = None
        if lanes == "tls":
            self._certificate = make_certificate(directory)
            self._certificate.trust()
        self.summary = summary
        self._number = 0
        self._generation = 0
        self._event_before = "none"
        (self._directory / "tee").mkdir(parents=True)
        served = directory / "served"
        served.mkdir()
        (served / "small").write_bytes(b"ok")
        (served / "big").write_bytes(b"big response." * 40_000)

    async def run(self, batches: int, size: int) -> None:
        """Run batches of `size` exchanges each."""
        async with (
            CampaignUpstream(self._generator, self._certificate) as self._upstream,
            run_bucket(self._upstream.plans, self._generator) as self._bucket,
        ):
            self._urls = self._upstream.url, self._bucket.url
            settings = make_config(self._urls, self._directory, self._lanes, certificate=self._certificate)
            with LogRecords() as logs, _collect_warnings(self.summary.stray_lines):
                async with run_gateway(settings) as self._gateway:
                    for _ in range(batches):
                        await self._run_batch(size, self._generator.choice(EVENTS), logs)
            if self._event_before == "descriptors":
                # asyncio's servers accept again after this, also where they have been closed.
                await asyncio.sleep(ACCEPT_RETRY_DELAY + 0.1)
            self.summary.stray_lines += logs.unexpected(())

    async def _run_batch(self, size: int, event: str, logs: LogRecords) -> None:
        plans = []
        for _ in range(size):
            self._number += 1
            plans.append(make_plan(self._number, self._generator, self._upstream.url))
        # Those of the batch before stay: a request may wait in the upstream's backlog after its exchange has ended.
        before = list(self._upstream.plans.values())
        self._upstream.plans.update({plan.number: plan for plan in plans})
        first_line = len(self._gateway.log)
        queue = list(plans)

        async def work() -> None:
            while queue:
                plan = queue.pop()
                try:
                    await run_client(plan, self._gateway.port, self._generator, self._certificate)
                except HungError as exc:
                    self.summary.hangs.append(str(exc))

        async with self._event(event), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(work(), name="client")
        await self._settle(event)
        lines = self._gateway.log[first_line:]
        for plan in plans:
            self._judge(plan, [line for line in lines if line["request_id"] == plan.id], event)
        await self._judge_files({plan.id: plan for plan in plans}, event)
        if event != "none":
            # The gateway reports its own faults; the server of the upstreams is asyncio's, which reports them, too.
            logs.records = [
                record
                for record in logs.records
                if record.exc_info and "out of system resource" not in record.getMessage()
            ]
        for plan in before:
            del self._upstream.plans[plan.number]
            if plan.is_late:
                self.summary.late_requests[self._event_before] += 1
                self._judge_received(plan, "received after its batch")
        for plan in plans:
            plan.is_judged = True
        self._event_before = event

    @contextlib.asynccontextmanager
    async def _event(self, event: str) -> AsyncIterator[None]:
        if event in ("reload", "cancel"):
            task = asyncio.create_task(self._disturb(event), name=event)
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        elif event in ("descriptors", "full disk"):
            kind = resource.RLIMIT_NOFILE if event == "descriptors" else resource.RLIMIT_FSIZE
            # The kernel gives the lowest free number: a few above those in use are left.
            used = {number for number, _ in open_descriptors()}
            free = (number for number in itertools.count() if number not in used)
            limit = (
                next(itertools.islice(free, self._generator.choice(_SPARE_DESCRIPTORS), None))
                if event == "descriptors"
                else 100_000
            )
            before = resource.getrlimit(kind)
            resource.setrlimit(kind, (limit, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(kind, before)
        else:
            yield

    async def _disturb(self, event: str) -> None:
        while True:
            await asyncio.sleep(0.05)
            if event == "reload":
                self._generation += 1
                settings = make_config(self._urls, self._directory, self._lanes, self._generation, self._certificate)
                fixed = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s"}
                config = parse_config(json.dumps({**fixed, **settings}))
                await self._gateway.gateway.reload(lambda config=config: config)  # type: ignore[misc]  # a default
            elif exchanges := [task for task in self._gateway.gateway._handler._exchanges if task is not None]:
                self._generator.choice(exchanges).cancel()

    async def _settle(self, event: str) -> None:
        """Wait until nothing is in flight, then look for what is left."""
        await self._upstream.cut_stalled()
        await self._bucket.cut_stalled()
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while (left := self._left()) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (counters)
            await asyncio.sleep(0.02)
        self.summary.leaks += [f"after a batch with event {event!r}: {text}" for text in left]

    def _left(self) -> list[str]:
        gateway = self._gateway
        left = [
            f"route {route.route} counts exchanges or transfers in flight"
            for route in gateway.stats.routes.values()
            if route.in_flight or any(transfer.in_flight for transfer in route.transfers.values())
        ]
        upstreams = gateway.gateway._resources.upstreams.items()
        left += [f"upstream {name} has slots taken" for name, upstream in upstreams if upstream.capacity.taken]
        names = [name for name in os.listdir(self._directory) if name.startswith(".")]
        names += [name for name in os.listdir(self._directory / "tee") if name.startswith(".")]
        left += [f"unfinished upload {name}" for name in names]
        left += [f"task {task}" for task in asyncio.all_tasks() if task.get_name().startswith(_TASKS)]
        if gateway.gateway._handler._exchanges:
            left.append("exchanges")
        return left

    def _judge(self, plan: Plan, lines: list[dict[str, Any]], event: str) -> None:
        summary = self.summary
        summary.exchanges += 1
        # Only what has happened, and is a fault.
        happened = [f"client: {plan.client.value}"] if plan.client is not ClientFault.NONE else []
        if plan.is_reached and plan.upstream not in PLAIN_UPSTREAM:
            happened.append(f"upstream: {plan.upstream.value}")
        if plan.is_reached and plan.bucket is not BucketFault.NONE:
            happened.append(f"bucket: {plan.bucket.value}")
        summary.faults += len(happened)
        summary.by_fault.update(happened)
        if event != "none":
            summary.by_fault[f"meanwhile: {event} (exchanges)"] += 1
        what = f"{plan.path} {self._lanes}, client: {plan.client.value}, upstream: {plan.upstream.value}, {event}"
        if plan.bucket is not BucketFault.NONE:
            what += f", bucket: {plan.bucket_method} {plan.bucket.value}"
        is_unread = plan.client in (ClientFault.RESET, ClientFault.BAD_HEAD) or plan.at < len(plan.head)
        if len(lines) > 1 or (not lines and plan.response and not is_unread):
            summary.missing_lines.append(f"{len(lines)} lines for {what}")
        for line in lines:
            summary.outcomes[f"{line['outcome']} ({line['blame']})"] += 1
            allowed = plan.blames | ({"gateway", "upstream", "client"} if event != "none" else set())
            charged = sum(line["wait_seconds"].values())
            if charged < line["seconds"] * 0.99 - 0.001:
                summary.wrong_legs.append(f"{charged:.4f} of {line['seconds']:.4f} s are charged to a leg for {what}")
            if line["blame"] not in allowed:
                summary.wrong_blames.append(f"{line['blame']} ({line['code']}, {line['status']}) for {what}")
        if not is_response_right(plan):
            summary.false_wholes.append(f"response of {what}: {plan.response[:60]!r}...{plan.response[-60:]!r}")
        self._judge_received(plan, what)

    def _judge_received(self, plan: Plan, what: str) -> None:
        if not is_received_right(plan):
            sizes = [len(body) for body in plan.received]
            self.summary.false_wholes.append(f"request of {what}: received {sizes} of {len(plan.body)}")

    async def _judge_files(self, plans: dict[str, Plan], event: str) -> None:
        """Check that only files of uploads that were sent whole are stored, and all of their bytes."""
        for path in (self._directory / "tee").iterdir():
            data = path.read_bytes()
            if not any(data == one.files[0] for one in plans.values() if one.path == "/tee" and one.files):
                self.summary.false_wholes.append(f"copy {path.name} of {len(data)} bytes")
            path.unlink()
        stored = {path.name: path.read_bytes() for path in self._directory.glob("plan-*")}
        for name in stored:
            (self._directory / name).unlink()
        stored |= await asyncio.to_thread(self._bucket.stored)
        for name, data in stored.items():
            plan = plans.get(name.rpartition("-")[0])
            if plan is None or not plan.is_sent or data not in plan.files:
                self.summary.false_wholes.append(f"file {name} of {len(data)} bytes")
        self.summary.false_wholes += [
            f"{plan.path} responded {bytes(plan.response[:300])!r} and stored {sorted(stored)}"
            for plan in plans.values()
            if not is_stored_right(plan, stored, is_disturbed=event != "none")
        ]
        for number in await asyncio.to_thread(self._bucket.open_uploads):
            plan = plans.get(f"plan-{number}")
            # Of an earlier batch: the server did what it was asked for after the connection of the request was cut.
            if plan is not None and plan.bucket is BucketFault.NONE and event != "descriptors":
                self.summary.leaks.append(f"a multipart upload is open after a batch with event {event!r}")
        await asyncio.to_thread(self._bucket.clear)


@contextlib.contextmanager
def _collect_warnings(lines: list[str]) -> Iterator[None]:
    """Take warnings, and exceptions that cannot be caught, as stray lines: both are written to standard error."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: lines.append(f"{args.exc_type}: {args.exc_value} in {args.object!r}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
            gc.collect()
        finally:
            sys.unraisablehook = hook
    lines += [f"{one.filename}:{one.lineno}: {one.message}" for one in caught]
