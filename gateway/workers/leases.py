"""The slots of a limit, leased to workers in the order in which they ask. Pure: no I/O, no clock.

The messages are those of `gateway.sharing`. What holds whatever the workers do, and however messages cross:

- No more leases are out than there are slots. After a limit was lowered, none is granted until fewer are out.
- Requests are granted in the order of their arrival here, over all workers.
- A lease is out until its worker returns it or has ended, and never longer.

While there are slots for all, each worker may keep its part of them unused, so that most requests cost no message. When
a request has to wait, all of them are taken back, and each slot comes back as soon as its exchange ends. Workers keep
leases again once several requests in a row were granted at once. A limit that is smaller than the number of workers is
never kept: a request costs three messages, and what it waits for is one answer.

A request beyond `max_queued` is refused only when no worker can have an unused lease: until then its slot may be on the
way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gateway.sharing import Grant, Keep, Refuse, ToWorker

#: Requests granted at once, one after the other, until workers keep leases again. Each change of that is a message to
#: every worker.
_CALM_COUNT: Final = 32

#: A worker.
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Member:
    """A worker that applies the limit."""

    #: Leases it may hold.
    leased: int
    #: What it may keep unused, and how many messages about that are not confirmed yet.
    keep: int = 0
    unconfirmed: int = 0

    @property
    def may_have_unused(self) -> bool:
        return self.leased > 0 and (self.keep > 0 or self.unconfirmed > 0)


class Ledger(Generic[K]):
    """The slots of one limit. It begins with none: `configure` sets the limit."""

    def __init__(self, limit: str, send: Callable[[K, ToWorker], None]) -> None:
        self._limit = limit
        self._send = send
        self._slots = 0
        self._max_queued = 0
        self._members: dict[K, _Member] = {}
        #: Workers that apply the limit soon: exchanges of theirs may run that are not counted yet.
        self._expected: set[K] = set()
        #: The requests that wait, by worker and number, in order of arrival; and those of them beyond `max_queued`.
        self._queue: dict[tuple[K, int], None] = {}
        self._excess: dict[tuple[K, int], None] = {}
        #: Leases that are out.
        self._leased = 0
        self._may_keep = True
        self._calm_count = 0

    @property
    def leased(self) -> int:
        """Leases that are out."""
        return self._leased

    @property
    def queue_length(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def is_unused(self) -> bool:
        """Whether no worker applies the limit."""
        return not self._members

    def configure(self, slots: int, max_queued: int, expected: Iterable[K] = ()) -> None:
        """Change the limit. `expected` are the workers that apply it from now on; those that do already are left out.

        Nothing is granted before all of them have joined. Requests that wait stay in a queue that is shorter now.
        """
        self._slots, self._max_queued = slots, max_queued
        self._expected |= set(expected) - self._members.keys()
        self._update()

    def join(self, worker: K, held: int) -> None:
        """Count a worker that applies the limit; `held` of its exchanges run already."""
        self._expected.discard(worker)
        self._members[worker] = _Member(held)
        self._leased += held
        self._update()

    def leave(self, worker: K) -> None:
        """Take back all that a worker has: it has ended, or does not apply the limit any more."""
        self._expected.discard(worker)
        if (member := self._members.pop(worker, None)) is not None:
            self._leased -= member.leased
            for key in [key for key in self._queue if key[0] == worker]:
                self._remove(key)
        self._update()

    def ask(self, worker: K, number: int) -> None:
        """Grant a slot, or put the request into the queue, or refuse it."""
        if worker not in self._members:
            return
        if self._has_free:
            # Then none waits.
            self._calm_count += 1
            self._grant(worker, number)
        elif len(self._queue) < self._max_queued:
            self._queue[worker, number] = None
        elif len(self._queue) < self._max_queued + self._perhaps_free():
            self._queue[worker, number] = self._excess[worker, number] = None
        else:
            self._refuse(worker, number)
        self._update()

    def withdraw(self, worker: K, number: int) -> None:
        """Forget a request. One that was granted meanwhile is given back by its worker."""
        if (worker, number) in self._queue:
            self._remove((worker, number))
            self._update()

    def give_back(self, worker: K, count: int) -> None:
        """Take back leases."""
        if (member := self._members.get(worker)) is not None:
            member.leased -= count
            self._leased -= count
            self._update()

    def confirm(self, worker: K, count: int) -> None:
        """Take back the leases that a worker returns with its confirmation of a Keep."""
        if (member := self._members.get(worker)) is not None:
            member.unconfirmed -= 1
            self.give_back(worker, count)

    @property
    def _has_free(self) -> bool:
        return not self._expected and self._leased < self._slots

    def _perhaps_free(self) -> int:
        """Return how many slots may turn out to be free, though none can be granted now."""
        unused = sum(member.leased for member in self._members.values() if member.may_have_unused)
        return unused + (max(0, self._slots - self._leased) if self._expected else 0)

    def _update(self) -> None:
        """Do what follows from a change: grant, let workers keep leases or take them back, refuse."""
        while self._queue and self._has_free:
            key = next(iter(self._queue))
            self._remove(key)
            self._grant(*key)
        if self._queue or self._leased > self._slots:
            self._may_keep, self._calm_count = False, 0
        elif self._calm_count >= _CALM_COUNT:
            self._may_keep = True
        share = self._slots // max(1, len(self._members)) if self._may_keep else 0
        for worker, member in self._members.items():
            if member.keep != share:
                member.keep = share
                member.unconfirmed += 1
                self._send(worker, Keep(self._limit, share))
        if self._excess and not self._perhaps_free():
            self._settle_excess()

    def _settle_excess(self) -> None:
        """Refuse what is beyond `max_queued`, now that no slot is left to be found."""
        within_count = len(self._queue) - len(self._excess)
        for index, key in enumerate(list(self._excess)):
            if within_count + index < self._max_queued:
                del self._excess[key]
            else:
                self._remove(key)
                self._refuse(*key)

    def _remove(self, key: tuple[K, int]) -> None:
        del self._queue[key]
        self._excess.pop(key, None)

    def _grant(self, worker: K, number: int) -> None:
        self._members[worker].leased += 1
        self._leased += 1
        self._send(worker, Grant(self._limit, number))

    def _refuse(self, worker: K, number: int) -> None:
        self._send(worker, Refuse(self._limit, number, self._leased, len(self._queue)))
