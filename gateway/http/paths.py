r"""How other programs may read a path: with dot segments resolved, slashes merged, decoded once more. Pure.

The gateway matches a path as it was sent, and sends it on like that. An upstream may resolve `..`, take `\` or
`%2F` for a slash, merge `//`, drop `;parameters` (servlets) or decode twice, and then serves another path than the one
that was matched. So a path has to lead to the same route, or lie below the same prefix, in each of these readings.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

#: A path without any of these has one reading: empty or dot segments, backslashes, parameters, and their encoded forms.
_AMBIGUOUS: Final = re.compile(r"//|/\.|[\\;]|%(?:25|2[EeFf]|5[Cc]|3[Bb]|[01][0-9A-Fa-f]|7[Ff])")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_SLASHES: Final = re.compile(r"[/\\]+")
#: How often a path is decoded; no program is known that decodes more than twice.
_MAX_DECODINGS: Final = 4


def has_readings(path: str) -> bool:
    """Return whether a path may be read in another way than as it was sent."""
    return _AMBIGUOUS.search(path) is not None


def readings(path: str) -> list[str]:
    """Return the ways in which a path that begins with a slash may be read: resolved, also after decoding."""
    found = [_resolve(path)]
    for _ in range(_MAX_DECODINGS):
        decoded = unquote(path, errors="replace")
        if decoded == path:
            break
        path = decoded
        found.append(_resolve(path))
    return found


def climbs(path: str) -> bool:
    """Return whether a path has a dot segment in one of its readings."""
    for _ in range(_MAX_DECODINGS + 1):
        segments = _SLASHES.split(_CONTROLS.sub("", path))
        if any(segment.partition(";")[0] in (".", "..") for segment in segments):
            return True
        path = unquote(path, errors="replace")
    return False


def is_below(path: str, prefix: str) -> bool:
    """Return whether a path is a prefix or lies below it by whole segments."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _resolve(path: str) -> str:
    """Return a path without dot segments, empty segments, parameters and control characters."""
    *directories, last = _SLASHES.split(_CONTROLS.sub("", path))
    resolved: list[str] = []
    for segment in directories[1:]:
        _enter(resolved, segment.partition(";")[0])
    last = last.partition(";")[0]
    if last in (".", ".."):
        _enter(resolved, last)
        last = ""
    return "/" + "".join(f"{segment}/" for segment in resolved) + last


def _enter(resolved: list[str], segment: str) -> None:
    if segment == "..":
        del resolved[-1:]
    elif segment != ".":
        resolved.append(segment)
