"""Limits over all workers: the supervisor's side and the workers', linked by a channel or in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest

from gateway.config import Config
from gateway.errors import Fault
from gateway.filters.throttle import Bucket, LeasedRate, Rate
from gateway.upstream.balancing import EndpointState
from gateway.workers.load import LoadRow, LoadTable
from tests.peers import TIMEOUT_SECONDS, RawUpstream, Wire, wait_until
from tests.workers.links import LinkKind, WorkerLimits, linked, settle

TWO = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
EJECTED = pytest.mark.expected_log("gateway.upstream", "is ejected", reason="requests fail")


@pytest.fixture(params=["memory", "channel"])
def link(request: pytest.FixtureRequest) -> LinkKind:
    kind: LinkKind = request.param
    return kind


class Exchanges:
    """Exchanges of several workers, by name: each takes a slot, and holds it until it is ended."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: Those that hold a slot, in the order in which they got it.
        self.running: list[str] = []
        self.faults: dict[str, str] = {}

    async def begin(self, worker: WorkerLimits, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = self._group.create_task(self._run(worker, name))
            await settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()

    async def _run(self, worker: WorkerLimits, name: str) -> None:
        try:
            async with worker.upstream.capacity:
                self.running.append(name)
                try:
                    await self._ends[name].wait()
                finally:
                    self.running.remove(name)
        except Fault as fault:
            self.faults[name] = str(fault)


@contextlib.asynccontextmanager
async def exchanges() -> AsyncIterator[Exchanges]:
    async with asyncio.TaskGroup() as group:
        running = Exchanges(group)
        yield running
        await running.end(*running._ends)


async def test_slots_hold_over_all_workers_and_go_to_those_that_wait_longest(link: LinkKind) -> None:
    async with linked(link, 4, max_in_flight=3) as (gateway, workers), exchanges() as run:
        for number, worker in enumerate(workers * 2):
            await run.begin(worker, str(number))
        assert run.running == ["0", "1", "2"]
        assert gateway.stats.upstreams["up"].queue_length == 5
        assert all(worker.upstream.capacity.is_full for worker in workers)
        for number in range(8):
            await run.end(str(number))
            assert run.running == [str(each) for each in range(number + 1, min(number + 4, 8))]
        assert gateway.stats.upstreams["up"].queue_length == 0


async def test_queue_is_as_long_as_configured_over_all_workers(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=1, max_queued=1) as (_, (one, two)), exchanges() as run:
        await run.begin(one, "a", "b")
        await run.begin(two, "c")
        assert run.faults["c"].startswith("queue_full: Upstream 'up' has 1 exchanges in flight and 1 waiting:")
        await run.begin(one, "d")
        assert "d" in run.faults
        await run.end("a")
        assert run.running == ["b"]


async def test_queue_of_length_0_refuses_nothing_while_another_worker_has_an_unused_slot(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=2, max_queued=0) as (_, (one, two)), exchanges() as run:
        await run.begin(two, "a")
        await run.end("a")
        await run.begin(one, "b", "c", "d")
        assert run.running == ["b", "c"]
        assert list(run.faults) == ["d"]


async def test_wait_for_a_slot_ends_at_the_limit_and_leaves_the_queue(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=1, queue_timeout="20ms") as (gateway, (one, two)), exchanges() as run:
        await run.begin(one, "a")
        await run.begin(two, "b")
        await wait_until(lambda: run.faults)
        assert run.faults["b"].startswith("queue_timeout: No slot of upstream 'up' became free within 0.02 s")
        await settle()
        assert gateway.stats.upstreams["up"].queue_length == 0
        assert two.stats.queue_seconds.total >= 0.02


async def test_client_that_leaves_the_queue_holds_up_no_other(link: LinkKind) -> None:
    async with linked(link, 3, max_in_flight=1) as (_, (one, two, three)), exchanges() as run:
        await run.begin(one, "a")
        await run.begin(two, "b")
        await run.begin(three, "c")
        await run.cancel("b")
        await run.end("a")
        assert run.running == ["c"]


@pytest.mark.parametrize("iterations", range(12))
async def test_slot_granted_to_a_client_that_has_just_left_goes_to_the_next(link: LinkKind, iterations: int) -> None:
    """The grant and the withdrawal cross at every possible point."""
    async with linked(link, 3, max_in_flight=1) as (_, (one, two, three)), exchanges() as run:
        await run.begin(one, "a")
        await run.begin(two, "b")
        await run.begin(three, "c")
        run._ends["a"].set()
        for _ in range(iterations):
            await asyncio.sleep(0)
        await run.cancel("b")
        assert run.running == ["c"]


async def test_slots_of_a_killed_worker_are_free_at_once(link: LinkKind) -> None:
    async with linked(link, 3, max_in_flight=2) as (gateway, (one, two, three)), exchanges() as run:
        await run.begin(one, "a", "b")
        await run.begin(two, "c")
        await run.begin(three, "d")
        await run.begin(one, "e")
        await gateway.kill(one)
        # Those of the killed worker are none any more.
        for name in ("a", "b", "e"):
            await run.cancel(name)
        assert run.running == ["c", "d"]
        assert gateway.stats.upstreams["up"].queue_length == 0


async def test_reload_changes_the_slots_in_place(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=1) as (gateway, (one, two)), exchanges() as run:
        await run.begin(one, "a", "b", "c")
        await run.begin(two, "d")
        await gateway.reload(max_in_flight=3)
        assert run.running == ["a", "b", "c"]
        assert gateway.stats.upstreams["up"].slots == 3
        assert gateway.stats.upstreams["up"].queue_length == 1
        await gateway.reload(max_in_flight=1)
        await run.end("a", "b")
        assert run.running == ["c"]
        await run.end("c")
        assert run.running == ["d"]


async def test_reload_to_no_limit_and_back_counts_what_runs(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=1) as (gateway, (one, two)), exchanges() as run:
        await run.begin(one, "a", "b")
        await gateway.reload()
        assert run.running == ["a", "b"]
        await run.begin(two, "c")
        await gateway.reload(max_in_flight=2)
        await run.begin(two, "d")
        await run.end("a")
        assert run.running == ["b", "c"]
        await run.end("c")
        assert run.running == ["b", "d"]


async def test_upstream_that_was_removed_keeps_its_limit_until_its_last_exchange(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=1) as (gateway, (one, two)), exchanges() as run:
        await run.begin(one, "a")
        await run.begin(two, "b")
        limit = "upstreams.up.max_in_flight"
        other = Config(routes=gateway.config.routes, upstreams={})
        gateway.limits.configure(other, list(gateway.workers))
        await run.end("a")
        assert run.running == ["b"]
        assert limit in gateway.limits._ledgers
        await run.end("b")
        for worker in (one, two):
            worker.upstream.close()
        await settle()
        assert limit not in gateway.limits._ledgers


async def test_worker_goes_on_without_its_supervisor_with_the_slots_it_has(link: LinkKind) -> None:
    async with linked(link, 2, max_in_flight=2) as (_, (one, two)), exchanges() as run:
        await run.begin(one, "a")
        await run.begin(two, "b")
        await run.begin(one, "c", "d")
        one.limits.lose_supervisor()
        await run.end("a")
        assert run.running == ["b", "c"]
        await run.end("c")
        assert run.running == ["b", "d"]


async def test_unused_slots_are_not_lost_with_the_supervisor(link: LinkKind) -> None:
    """Those that wait have asked for a slot each, and the answers do not come."""
    async with linked(link, 2, max_in_flight=4) as (_, (one, _)), exchanges() as run:
        await run.begin(one, "a", "b")
        one.limits._has_supervisor = False
        await run.begin(one, "c", "d", "e")
        await run.end("a", "b")
        assert run.running == []
        one.limits.lose_supervisor()
        await settle()
        assert run.running == ["c", "d"]
        await run.end("c", "d")
        assert run.running == ["e"]


async def test_requests_cost_no_message_without_a_limit_or_far_below_it(link: LinkKind) -> None:
    for keys in ({}, {"max_in_flight": 100}):
        async with linked(link, 2, **keys) as (gateway, (one, _)), exchanges() as run:
            await run.begin(one, "warm")
            await run.end("warm")
            count = gateway.message_count
            for number in range(10):
                await run.begin(one, str(number))
                await run.end(str(number))
            assert gateway.message_count == count


@pytest.mark.slow
async def test_no_slot_is_lost_or_given_twice_whatever_happens(link: LinkKind) -> None:
    """Exchanges that end, are cancelled or time out at random, and workers that are killed."""
    generator = random.Random(7)
    async with linked(link, 3, max_in_flight=3, max_queued=5, queue_timeout="5ms") as (gateway, _):
        holding: dict[object, int] = {}
        most = 0

        async def run(worker: WorkerLimits) -> None:
            nonlocal most
            with contextlib.suppress(Fault):
                async with worker.upstream.capacity:
                    holding[asyncio.current_task()] = worker.number
                    try:
                        most = max(most, sum(number in gateway.workers for number in holding.values()))
                        await asyncio.sleep(generator.choice([0, 0, 0.001, 0.003]))
                    finally:
                        del holding[asyncio.current_task()]

        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            for step in range(1500):
                tasks.append(group.create_task(run(generator.choice(list(gateway.workers.values())))))
                if generator.random() < 0.3:
                    generator.choice(tasks).cancel()
                if step % 300 == 299:
                    await gateway.kill(generator.choice(list(gateway.workers.values())))
                    await gateway.add()
                await asyncio.sleep(generator.choice([0, 0, 0, 0.0005]))
        assert most == 3
        await settle()
        unused = sum(worker.upstream.capacity._leases.held for worker in gateway.workers.values())  # type: ignore[attr-defined]
        ledger = gateway.limits._ledgers["upstreams.up.max_in_flight"]
        assert (ledger.queue_length, ledger.leased) == (0, unused)


def state_of(worker: WorkerLimits, number: int) -> EndpointState:
    state = worker.upstream.find(TWO[number])
    assert state is not None
    return state


@EJECTED
async def test_failures_in_a_row_count_together_over_all_workers(link: LinkKind) -> None:
    keys = {"endpoints": TWO, "ejection": {"failures": 3, "duration": "1h"}}
    async with linked(link, 3, **keys) as (gateway, workers):
        for worker in workers[:2]:
            worker.upstream.record_failure(state_of(worker, 0), "status 503")
            await settle()
        assert all(state_of(worker, 0).is_healthy for worker in workers)
        workers[2].upstream.record_failure(state_of(workers[2], 0), "status 503")
        await settle()
        assert [state_of(worker, 0).is_healthy for worker in workers] == [False] * 3
        assert gateway.stats.upstreams["up"].endpoints[TWO[0]].ejections == 1
        late = await gateway.add()
        assert not state_of(late, 0).is_healthy
        # The last healthy endpoint is never ejected.
        for worker in workers:
            worker.upstream.record_failure(state_of(worker, 1), "status 503")
        await settle()
        assert state_of(workers[0], 1).is_healthy


async def test_success_in_any_worker_ends_the_row_of_failures(link: LinkKind) -> None:
    keys = {"endpoints": TWO, "ejection": {"failures": 2, "duration": "1h"}}
    async with linked(link, 2, **keys) as (gateway, (one, two)):
        for _ in range(5):
            one.upstream.record_failure(state_of(one, 0), "status 503")
            await settle()
            two.upstream.record_success(state_of(two, 0))
            await settle()
        assert gateway.stats.upstreams["up"].endpoints[TWO[0]].ejections == 0
        count = gateway.message_count
        for _ in range(5):
            two.upstream.record_success(state_of(two, 0))
            await settle()
        assert gateway.message_count == count


@EJECTED
async def test_readmission_is_sent_to_every_worker(link: LinkKind) -> None:
    keys = {"endpoints": TWO, "ejection": {"failures": 1, "duration": "10ms"}}
    async with linked(link, 2, **keys) as (_, (one, two)):
        one.upstream.record_failure(state_of(one, 0), "status 503")
        await wait_until(lambda: not state_of(two, 0).is_healthy)
        await wait_until(lambda: state_of(two, 0).is_healthy and state_of(one, 0).is_healthy)


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_endpoint_is_checked_once_for_all_workers(link: LinkKind) -> None:
    async def respond_503(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    async with RawUpstream(respond_503) as bad:
        keys = {"endpoints": [bad.url], "health": {"path": "/healthz", "interval": "1h", "fails": 1}}
        async with linked(link, 3, **keys) as (gateway, workers):
            await wait_until(lambda: not any(worker.upstream.is_available for worker in workers))
            assert len(bad.wires) == 1
            assert gateway.limits.unavailable_upstreams() == ["up"]
            # A reload of what has nothing to do with it starts no checks.
            await gateway.reload(**keys)
            await settle()
            assert len(bad.wires) == 1


def accept_within(row: LoadRow, limit: int) -> bool:
    """Count a connection unless `limit` are open; return whether it is counted."""
    is_reserved = row.reserve(limit)
    if is_reserved:
        row.end_reservation(is_accepted=True)
    return is_reserved


def test_last_connection_goes_to_one_worker() -> None:
    table = LoadTable()
    one, two = (LoadRow(table, table.take_row()) for _ in range(2))
    assert [accept_within(row, 3) for row in (one, two, one, two, one)] == [True, True, True, False, False]
    assert one.total() == two.total() == 3
    one.count(-1)
    assert accept_within(two, 3)
    table.give_back(1)
    assert two.total() == 2


async def take_all(rate: Rate, seconds: float) -> int:
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                await rate.take(1000)
                taken += 1000
    return taken


@pytest.mark.slow
async def test_rate_holds_over_all_workers_and_one_that_is_alone_gets_all_of_it(link: LinkKind) -> None:
    async with linked(link, 2) as (_, (one, two)):
        rates = [LeasedRate("routes.r.filters[0].throttle ", 1e6, worker.limits) for worker in (one, two)]
        await take_all(rates[0], 0.3)
        shares = [0.0, 0.0]
        # A loop that gets no CPU time for longer than the burst loses some of the rate.
        for _ in range(10):
            shares = await take_shares(*rates)
            assert sum(shares) < 1.3
            if sum(shares) > 0.8 and min(shares) > 0.3 * sum(shares):
                break
        assert sum(shares) > 0.8
        assert min(shares) > 0.3 * sum(shares)
        alone = [await take_shares(rates[1])]
        while len(alone) < 10 and alone[-1] <= [0.8]:
            alone.append(await take_shares(rates[1]))
        assert alone[-1] > [0.8]


async def take_shares(*rates: LeasedRate) -> list[float]:
    """Take as much as possible for half a second, and return the share of the whole rate that each got."""
    began = time.monotonic()
    sizes = await asyncio.gather(*(take_all(rate, 0.5) for rate in rates))
    return [size / (1e6 * (time.monotonic() - began)) for size in sizes]


async def test_bytes_of_a_client_that_left_while_it_waited_cost_others_nothing(link: LinkKind) -> None:
    async with linked(link, 2) as (gateway, (one, two)):
        rates = [LeasedRate("routes.r.filters[0].throttle ", 1000, worker.limits) for worker in (one, two)]
        # An hour's worth.
        waiting = asyncio.ensure_future(rates[0].take(3_600_000))
        await settle()
        waiting.cancel()
        await settle()
        await asyncio.wait_for(rates[1].take(100), TIMEOUT_SECONDS)
        assert not gateway.limits._rates._tasks


class StoppedClock:
    """A time that does not pass: what buckets grant is exact."""

    @staticmethod
    def monotonic() -> float:
        return 1000.0


@pytest.mark.parametrize("iterations", range(12))
async def test_bytes_granted_to_a_client_that_has_just_left_are_granted_to_the_next(
    link: LinkKind, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant and the withdrawal cross at every possible point."""
    monkeypatch.setattr("gateway.filters.throttle.time", StoppedClock)
    async with linked(link, 1) as (gateway, (one,)):
        rate = LeasedRate("routes.r.filters[0].throttle ", 1000, one.limits)
        # All that is granted at once.
        waiting = asyncio.ensure_future(rate.take(250))
        for _ in range(iterations):
            await asyncio.sleep(0)
        waiting.cancel()
        await settle()
        is_used = not waiting.cancelled()
        (bucket,) = gateway.limits._rates._buckets.values() or [Bucket(1000)]
        missing = (bucket.empty_at - Bucket(1000).grants_at(0, StoppedClock.monotonic())) * 1000
        # The worker may have them, for its next client.
        assert max(0.0, missing) == pytest.approx(250 if is_used else rate._bytes)


async def test_bytes_given_back_are_granted_to_the_first_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were lost: what waited was granted at the time that was computed before."""
    monkeypatch.setattr("gateway.filters.throttle.time", StoppedClock)
    bucket = Bucket(1000)
    await bucket.take(250)
    granted_at = bucket.empty_at
    waiting = asyncio.ensure_future(bucket.take(250))
    await settle()
    bucket.give_back(250)
    await asyncio.wait_for(waiting, TIMEOUT_SECONDS)
    assert bucket.empty_at == granted_at


async def test_throttled_uploads_end_without_the_supervisor(link: LinkKind) -> None:
    async with linked(link, 1) as (_, (one,)):
        rate = LeasedRate("routes.r.filters[0].throttle ", 1000, one.limits)
        waiting = asyncio.ensure_future(rate.take(3_600_000))
        await settle()
        one.limits.lose_supervisor()
        await asyncio.wait_for(waiting, TIMEOUT_SECONDS)
        await asyncio.wait_for(rate.take(3_600_000), TIMEOUT_SECONDS)


async def test_waits_for_bytes_end_with_the_worker(link: LinkKind) -> None:
    async with linked(link, 1) as (gateway, (one,)):
        rate = LeasedRate("routes.r.filters[0].throttle ", 1000, one.limits)
        waiting = asyncio.ensure_future(rate.take(3_600_000))
        await settle()
        assert gateway.limits._rates._tasks
        await gateway.kill(one)
        assert not gateway.limits._rates._tasks
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
