"""Replace the config in all workers, or in none: in two phases.

    supervisor                 worker
    -------------------------  ----------------------------------------------------------------------
    PREPARE to all             makes everything that can fail; the config in force stays
    all PREPARED               .
      none has a reason: COMMIT  puts it in force, which cannot fail
      one has one:       ABORT   drops it

A worker that dies meanwhile decides nothing. One that starts meanwhile gets the config that is in force then, and the
next one once it is ready.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Collection
from typing import Final

from gateway.config import Config
from gateway.workers.channel import Kind
from gateway.workers.process import WorkerProcess

#: For a worker to prepare a config: plug-ins may read models.
ANSWER_SECONDS: Final = 30.0


class Replacement:
    """Replaces configs. `handle_prepared` and `forget` are to be called for each PREPARED and each end of a worker."""

    def __init__(self, before_commit: Callable[[Config, Collection[WorkerProcess]], None]) -> None:
        """`before_commit` is called with a config that none has refused, and the workers that put it in force next."""
        self._before_commit = before_commit
        #: The workers that are asked, with their reasons.
        self._answers: dict[WorkerProcess, asyncio.Future[list[str]]] = {}
        #: Replacements that were tried: the answer to one must not be taken for that to another.
        self._number = 0

    async def replace(self, generation: int, config: Config, workers: Collection[WorkerProcess]) -> list[str]:
        """Put a config in force in all these workers; return the reasons if one cannot use it: then in none.

        Not to be called again before it returns. Cancelling it leaves the workers without an answer.
        """
        self._number += 1
        content = pickle.dumps((self._number, config), pickle.HIGHEST_PROTOCOL)
        loop = asyncio.get_running_loop()
        asked = self._answers = {worker: loop.create_future() for worker in workers}
        for worker in asked:
            worker.channel.send_pickled(Kind.PREPARE, content)
        _, silent = await asyncio.wait(asked.values(), timeout=ANSWER_SECONDS) if asked else (None, ())
        self._answers = {}
        problems = [problem for answer in asked.values() if answer not in silent for problem in answer.result()]
        if silent:
            problems.append(f"{len(silent)} workers did not prepare it within {ANSWER_SECONDS:g} s")
        if not problems:
            self._before_commit(config, asked)
        for worker in asked:
            worker.channel.send(Kind.ABORT if problems else Kind.COMMIT, self._number)
            if not problems:
                worker.generation = generation
        # Workers have most reasons in common.
        return list(dict.fromkeys(problems))

    def handle_prepared(self, worker: WorkerProcess, content: tuple[int, list[str]]) -> None:
        """Take in the answer of a worker."""
        number, problems = content
        answer = self._answers.get(worker)
        if answer is not None and number == self._number:
            answer.set_result(problems)

    def forget(self, worker: WorkerProcess) -> None:
        """Go on without a worker that has ended."""
        answer = self._answers.get(worker)
        if answer is not None and not answer.done():
            answer.set_result([])
