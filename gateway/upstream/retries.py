"""How many requests to an upstream may be sent a second time: a token bucket, as in Finagle and linkerd.

Each request adds a share of a token, each retry takes one. So retries never add more than that share to the load of an
upstream that fails all requests, while a few requests that fail are all sent again.

Several workers divide the tokens per second among them, and each adds the share of its own requests: together they add
no more than one process would, without a message. Rejected: one bucket in the supervisor. Retries would wait for it
while everything fails, and the workers get their requests from one queue, so their failures are spread as evenly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Added in any case, so that also an upstream with few requests gets retries (Finagle: 10).
_TOKENS_PER_SECOND: Final = 10.0
#: What is held at most: ten seconds of that. More would be a burst on an upstream that has just failed.
_MAX_TOKENS: Final = 100.0


class RetryBudget:
    """The tokens of one upstream. It starts with those of one second."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = 0.0
        self._worker_count = 1
        self._tokens_per_second = _TOKENS_PER_SECOND
        self._max_tokens = _MAX_TOKENS
        self._clock = clock
        self._tokens = _TOKENS_PER_SECOND
        self._refilled = clock()
        #: Requests whose share was not added yet: one more with every request.
        self.request_count = 0

    def configure(self, share: float, worker_count: int = 1) -> None:
        """Set the share of a token that one request adds, and among how many workers the budget is divided."""
        self._deposit()
        self._share = share
        if worker_count != self._worker_count:
            # One at least: the first request that fails is sent again.
            self._tokens = max(1.0, self._tokens * self._worker_count / worker_count)
            self._worker_count = worker_count
            self._tokens_per_second = _TOKENS_PER_SECOND / worker_count
            self._max_tokens = max(1.0, _MAX_TOKENS / worker_count)

    def withdraw(self) -> bool:
        """Take a token for a retry; return whether there was one."""
        if not self._share:
            return False
        self._deposit()
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._refilled) * self._tokens_per_second, self._max_tokens)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _deposit(self) -> None:
        """Add the shares of the requests: as nothing was taken since, all at once."""
        self._tokens = min(self._tokens + self.request_count * self._share, self._max_tokens)
        self.request_count = 0
