"""How soon a worker that died is replaced."""

from __future__ import annotations

from typing import Final

_FIRST_SECONDS: Final = 0.5
_MAX_SECONDS: Final = 30.0
#: A worker that lived longer was no failed start.
LONG_SECONDS: Final = 10.0


class Pauses:
    """The pauses before the replacements of one worker: 0, 0.5, 1, 2, 4 ... 30 s; 0 again after one that lived long.

    So a worker that dies once is replaced at once, and one that cannot start costs no core.
    """

    def __init__(self) -> None:
        self._next_seconds = 0.0

    def after(self, lived_seconds: float) -> float:
        """Return the seconds to wait after a worker that has lived for this long has died."""
        if lived_seconds > LONG_SECONDS:
            self._next_seconds = 0.0
        pause = self._next_seconds
        self._next_seconds = min(max(_FIRST_SECONDS, 2 * pause), _MAX_SECONDS)
        return pause
