"""Numbers for people: sizes and times, with few digits and a unit."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_MINUTE_SECONDS: Final = 60.0
_HOUR_SECONDS: Final = 3600.0


def show_bytes(size_bytes: float) -> str:
    """Return a size in SI units with two digits, for example `1.2 GB`."""
    for unit in _UNITS[:-1]:
        # PLR2004: 1000 is SI's step, 10 the first size with two digits.
        if round(size_bytes) < 1000:  # noqa: PLR2004 (SI)
            return f"{size_bytes:.0f} {unit}" if size_bytes >= 10 or unit == "B" else f"{size_bytes:.1f} {unit}"  # noqa: PLR2004
        size_bytes /= 1000
    return f"{size_bytes:.1f} {_UNITS[-1]}"


def show_seconds(seconds: float) -> str:
    """Return a time, for example `12 s` or `3 min`."""
    if seconds < 2 * _MINUTE_SECONDS:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_SECONDS:
        return f"{seconds / _MINUTE_SECONDS:.0f} min"
    return f"{seconds / _HOUR_SECONDS:.0f} h"
