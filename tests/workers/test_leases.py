"""Slots leased to workers: nothing is lost, none is given twice, in order of arrival, however messages cross."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.sharing import (
    Ask,
    GiveBack,
    Grant,
    Join,
    Keep,
    Kept,
    Leases,
    Leave,
    Refuse,
    ToSupervisor,
    ToWorker,
    Withdraw,
)
from gateway.workers.leases import Ledger

LIMIT = "upstreams.up.max_in_flight"


@dataclass(frozen=True)
class Commit:
    """The config in force from now on, as the supervisor sends it to its workers."""

    slots: float


@dataclass
class Worker:
    """The worker's side of one limit, with a channel of messages each way."""

    number: int
    leases: Leases[int]
    to_supervisor: deque[ToSupervisor]
    to_worker: deque[ToWorker | Commit] = field(default_factory=deque)
    #: Requests of this worker that were refused.
    refused: list[int] = field(default_factory=list)

    def deliver(self) -> None:
        """Receive one message."""
        match self.to_worker.popleft():
            case Grant(_, number):
                self.leases.grant(number)
            case Refuse(_, number):
                if (request := self.leases.refuse(number)) is not None:
                    self.refused.append(request)
            case Keep(_, count):
                self.leases.keep(count)
            case Commit(slots):
                if math.isinf(slots) and self.leases.is_limited:
                    self.leases.end()
                elif math.isfinite(slots) and not self.leases.is_limited:
                    self.leases.begin()


class Gateway:
    """A supervisor with a ledger, and workers; messages are delivered one by one."""

    def __init__(self, on_send: Callable[[int, ToWorker], None] = lambda worker, message: None) -> None:
        self.workers: dict[int, Worker] = {}
        self.ledger = Ledger(LIMIT, self.send)
        self.slots: float = math.inf
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._on_send = on_send

    def send(self, worker: int, message: ToWorker) -> None:
        self.workers[worker].to_worker.append(message)
        self._on_send(worker, message)

    def configure(self, slots: float, max_queued: int = 10) -> None:
        self.slots = slots
        if math.isfinite(slots):
            self.ledger.configure(int(slots), max_queued, self.workers)
        for worker in self.workers.values():
            worker.to_worker.append(Commit(slots))

    def add(self) -> Worker:
        channel: deque[ToSupervisor] = deque()
        worker = Worker(next(self._numbers), Leases(LIMIT, channel.append), channel)
        self.workers[worker.number] = worker
        # It starts with the config in force, before its first request.
        worker.to_worker.append(Commit(self.slots))
        worker.deliver()
        return worker

    def request(self, worker: Worker) -> None:
        if not worker.leases.take():
            worker.leases.wait(next(self._requests))

    def receive(self, worker: Worker) -> None:
        """Deliver one message of a worker."""
        match worker.to_supervisor.popleft():
            case Join(_, held):
                self.ledger.join(worker.number, held)
            case Leave():
                self.ledger.leave(worker.number)
            case Ask(_, number):
                self.ledger.ask(worker.number, number)
            case Withdraw(_, number):
                self.ledger.withdraw(worker.number, number)
            case GiveBack(_, count):
                self.ledger.give_back(worker.number, count)
            case Kept(_, count):
                self.ledger.confirm(worker.number, count)

    def kill(self, worker: Worker) -> None:
        del self.workers[worker.number]
        self.ledger.leave(worker.number)

    def settle(self) -> None:
        """Deliver messages until there are none."""
        while any(worker.to_supervisor or worker.to_worker for worker in self.workers.values()):
            for worker in list(self.workers.values()):
                while worker.to_worker:
                    worker.deliver()
                while worker.to_supervisor:
                    self.receive(worker)

    @property
    def used(self) -> int:
        return sum(worker.leases.used for worker in self.workers.values())

    @property
    def waiting(self) -> int:
        return sum(len(worker.leases.waiting) for worker in self.workers.values())


def started(worker_count: int, slots: int, max_queued: int = 10) -> tuple[Gateway, list[Worker]]:
    gateway = Gateway()
    gateway.configure(slots, max_queued)
    workers = [gateway.add() for _ in range(worker_count)]
    gateway.settle()
    return gateway, workers


def messages_of(gateway: Gateway, worker: Worker, request_count: int) -> int:
    """Return how many messages some requests cost, one after the other."""
    sent: list[ToWorker] = []
    gateway._on_send = lambda worker, message: sent.append(message)
    count = 0
    for _ in range(request_count):
        gateway.request(worker)
        count += len(worker.to_supervisor)
        gateway.settle()
        worker.leases.release()
        count += len(worker.to_supervisor)
        gateway.settle()
    return count + len(sent)


def test_requests_cost_no_message_while_there_are_slots_for_all() -> None:
    gateway, (worker, _) = started(2, slots=8)
    messages_of(gateway, worker, 1)
    assert messages_of(gateway, worker, 100) == 0


def test_request_costs_three_messages_with_fewer_slots_than_workers() -> None:
    gateway, (worker, *_) = started(4, slots=3)
    assert messages_of(gateway, worker, 100) == 300


def test_worker_that_is_alone_gets_the_unused_slots_of_the_others() -> None:
    gateway, (one, two) = started(2, slots=8)
    for _ in range(4):
        gateway.request(two)
    gateway.settle()
    for _ in range(4):
        two.leases.release()
    assert two.leases.held == 4
    for _ in range(8):
        gateway.request(one)
    gateway.settle()
    assert one.leases.used == 8
    assert two.leases.held == 0


def test_unused_leases_are_kept_again_after_calm() -> None:
    gateway, (one, two) = started(2, slots=2)
    for worker in (one, two, two):
        gateway.request(worker)
    gateway.settle()
    assert gateway.waiting == 1
    two.leases.release()
    gateway.settle()
    two.leases.release()
    gateway.settle()
    one.leases.release()
    gateway.settle()
    assert messages_of(gateway, one, 1) == 3
    messages_of(gateway, one, 100)
    assert messages_of(gateway, one, 100) == 0


def test_slots_of_a_killed_worker_go_to_those_that_wait_longest() -> None:
    gateway, (one, two, three) = started(3, slots=2)
    gateway.request(one)
    gateway.request(one)
    gateway.settle()
    gateway.request(two)
    gateway.settle()
    gateway.request(three)
    gateway.settle()
    gateway.request(two)
    gateway.settle()
    gateway.kill(one)
    gateway.settle()
    assert (two.leases.used, three.leases.used) == (1, 1)
    assert gateway.waiting == 1


def test_grant_that_crosses_a_withdrawal_is_given_back() -> None:
    gateway, (one, two) = started(2, slots=1)
    gateway.request(one)
    gateway.settle()
    gateway.request(two)
    gateway.settle()
    one.leases.release()
    gateway.receive(one)
    two.leases.withdraw(next(iter(two.leases.waiting)))
    gateway.settle()
    assert (two.leases.used, two.leases.held, gateway.ledger.leased) == (0, 0, 0)


def test_request_beyond_the_queue_is_refused_only_if_no_worker_has_an_unused_slot() -> None:
    gateway, (one, two) = started(2, slots=4, max_queued=0)
    for worker in (one, one, two, two):
        gateway.request(worker)
    gateway.settle()
    for _ in range(2):
        two.leases.release()
    for _ in range(3):
        gateway.request(one)
    gateway.settle()
    assert (one.leases.used, len(one.refused)) == (4, 1)


def test_nothing_is_granted_before_every_worker_has_counted_its_exchanges() -> None:
    gateway = Gateway()
    one, two = gateway.add(), gateway.add()
    gateway.settle()
    for _ in range(3):
        gateway.request(two)
    gateway.configure(3)
    one.deliver()
    gateway.request(one)
    while one.to_supervisor:
        gateway.receive(one)
    assert one.leases.used == 0
    gateway.settle()
    assert one.leases.used == 0
    two.leases.release()
    gateway.settle()
    assert one.leases.used == 1


def test_worker_whose_supervisor_is_gone_goes_on_with_what_it_holds() -> None:
    gateway, (one, _) = started(2, slots=2)
    gateway.request(one)
    gateway.settle()
    gateway.request(one)
    gateway.settle()
    gateway.request(one)
    assert one.leases.lose_supervisor() is None
    assert one.leases.release() is not None
    assert (one.leases.used, one.leases.waiting) == (2, {})
    for _ in range(2):
        one.leases.release()
    assert one.leases.take()


@pytest.mark.parametrize("message", [GiveBack(LIMIT, 1), Kept(LIMIT, 1), Withdraw(LIMIT, 1), Ask(LIMIT, 1)])
def test_what_a_worker_sent_before_it_left_is_void(message: ToSupervisor) -> None:
    gateway, (one, two) = started(2, slots=1)
    gateway.ledger.leave(one.number)
    one.to_supervisor.append(message)
    gateway.receive(one)
    assert gateway.ledger.leased == 0
    assert not one.to_worker
    gateway.request(two)
    gateway.settle()
    assert two.leases.used == 1


class AnyOrder(RuleBasedStateMachine):
    """Requests, ends, withdrawals, deaths, starts and reloads, while messages are delivered in any order.

    Only those of one channel stay in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway(self.check_sent)
        #: Requests in the order in which the ledger received them, by worker and number.
        self.arrived: dict[tuple[int, int], None] = {}

    def check_sent(self, worker: int, message: ToWorker) -> None:
        """No slot is granted that is in use, or out of order; none is refused that could be had."""
        match message:
            case Grant(_, number):
                under_way = sum(
                    isinstance(other, Grant) for each in self.gateway.workers.values() for other in each.to_worker
                )
                assert self.gateway.used + under_way <= self.gateway.slots
                assert next(iter(self.arrived)) == (worker, number)
                del self.arrived[worker, number]
            case Refuse(_, number):
                del self.arrived[worker, number]
                limited = [each.leases for each in self.gateway.workers.values() if each.leases.is_limited]
                # What is not used is for those that have waited longer.
                assert sum(leases.held - leases.used for leases in limited) <= len(self.arrived)

    @initialize(count=st.integers(1, 4), slots=st.one_of(st.just(math.inf), st.integers(1, 6)))
    def start(self, count: int, slots: float) -> None:
        self.gateway.configure(slots)
        for _ in range(count):
            self.gateway.add()

    def pick(self, data: st.DataObject, may: Callable[[Worker], object] = lambda worker: True) -> Worker | None:
        workers = [worker for worker in self.gateway.workers.values() if may(worker)]
        return data.draw(st.sampled_from(workers)) if workers else None

    @rule(data=st.data(), count=st.integers(1, 4))
    def request(self, data: st.DataObject, count: int) -> None:
        if (worker := self.pick(data)) is not None:
            for _ in range(count):
                self.gateway.request(worker)

    @rule(data=st.data())
    def end_exchange(self, data: st.DataObject) -> None:
        if (worker := self.pick(data, lambda worker: worker.leases.used)) is not None:
            worker.leases.release()

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if (worker := self.pick(data, lambda worker: worker.leases.waiting)) is not None:
            worker.leases.withdraw(data.draw(st.sampled_from(list(worker.leases.waiting))))

    @rule(data=st.data(), count=st.integers(1, 8))
    def deliver_to_supervisor(self, data: st.DataObject, count: int) -> None:
        if (worker := self.pick(data, lambda worker: worker.to_supervisor)) is not None:
            for _ in range(min(count, len(worker.to_supervisor))):
                self.receive(worker)

    @rule(data=st.data(), count=st.integers(1, 8))
    def deliver_to_worker(self, data: st.DataObject, count: int) -> None:
        if (worker := self.pick(data, lambda worker: worker.to_worker)) is not None:
            for _ in range(min(count, len(worker.to_worker))):
                worker.deliver()

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        if (worker := self.pick(data)) is not None:
            for key in [key for key in self.arrived if key[0] == worker.number]:
                del self.arrived[key]
            self.gateway.kill(worker)

    @precondition(lambda self: len(self.gateway.workers) < 4)
    @rule()
    def add(self) -> None:
        self.gateway.add()

    @rule(slots=st.one_of(st.just(math.inf), st.integers(1, 6)), max_queued=st.integers(0, 4))
    def reload(self, slots: float, max_queued: int) -> None:
        # Every worker has confirmed that it is prepared, after the Commit before and all that followed from it.
        for worker in self.gateway.workers.values():
            while any(isinstance(message, Commit) for message in worker.to_worker):
                worker.deliver()
            while any(isinstance(message, Join | Leave) for message in worker.to_supervisor):
                self.receive(worker)
        self.gateway.configure(slots, max_queued)

    def receive(self, worker: Worker) -> None:
        key = None
        match worker.to_supervisor[0]:
            case Ask(_, number):
                self.arrived[worker.number, number] = None
            case Withdraw(_, number):
                key = (worker.number, number)
            case Leave():
                for arrived in [arrived for arrived in self.arrived if arrived[0] == worker.number]:
                    del self.arrived[arrived]
        if key is not None:
            self.arrived.pop(key, None)
        self.gateway.receive(worker)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every lease is held by a worker, or on its way."""
        out = 0
        for worker in self.gateway.workers.values():
            if worker.number not in self.gateway.ledger._members or any(
                isinstance(message, Leave) for message in worker.to_supervisor
            ):
                continue
            out += int(worker.leases.held)
            out += sum(isinstance(message, Grant) for message in worker.to_worker)
            out += sum(message.leases for message in worker.to_supervisor if isinstance(message, GiveBack | Kept))
        left = sum(
            member.leased
            for number, member in self.gateway.ledger._members.items()
            if any(isinstance(message, Leave) for message in self.gateway.workers[number].to_supervisor)
        )
        assert self.gateway.ledger.leased == out + left

    def settle(self) -> None:
        workers = self.gateway.workers.values()
        while any(worker.to_supervisor or worker.to_worker for worker in workers):
            for worker in workers:
                while worker.to_worker:
                    worker.deliver()
                while worker.to_supervisor:
                    self.receive(worker)

    def teardown(self) -> None:
        """Nothing waits for long while a slot is free, and everything that waits is served in the end."""
        for _ in range(1000):
            self.settle()
            if self.gateway.waiting:
                assert self.gateway.used >= self.gateway.slots
            busy = [worker for worker in self.gateway.workers.values() if worker.leases.used]
            if not busy:
                break
            busy[0].leases.release()
        assert not self.gateway.waiting
        assert not self.gateway.used
        if math.isfinite(self.gateway.slots):
            held = sum(worker.leases.held for worker in self.gateway.workers.values())
            assert held == self.gateway.ledger.leased <= self.gateway.slots
        assert not self.arrived


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    # A failure is reported as it was found: to make it smaller takes minutes.
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
