"""How many requests to an upstream may be sent a second time: a token bucket, as in Finagle and linkerd.

Each request adds a share of a token, each retry takes one. So retries never add more than that share to the load of an
upstream that fails all requests, while a few requests that fail are all sent again.
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
    """The tokens of one upstream. It starts with those of one second; `share` is what one request adds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = 0.0
        self._clock = clock
        self._tokens = _TOKENS_PER_SECOND
        self._refilled = clock()

    def deposit(self) -> None:
        """Add the share of one request."""
        tokens = self._tokens + self.share
        self._tokens = tokens if tokens < _MAX_TOKENS else _MAX_TOKENS

    def withdraw(self) -> bool:
        """Take a token for a retry; return whether there was one."""
        if not self.share:
            return False
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._refilled) * _TOKENS_PER_SECOND, _MAX_TOKENS)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
