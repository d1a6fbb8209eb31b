"""Environment variables in a config, hidden in what is shown of it: their values may be secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

#: A shorter value is hidden only where it stands in quotes: it is no secret, and may be part of any word.
_SECRET_CHARACTERS: Final = 4
#: Of the beginning and of the end of a long message.
_SHOWN_CHARACTERS: Final = 200


@dataclass(slots=True)
class Variables:
    """The variables that a config uses, and their values."""

    #: What is shown instead, by the form in which a value may be shown.
    _shown: dict[str, str] = field(default_factory=dict)
    _pattern: re.Pattern[str] | None = None

    def add(self, name: str, value: str) -> None:
        """Record a variable that is used."""
        self._shown.update(_forms(name, value))
        self._pattern = None

    def hide(self, text: str) -> str:
        """Return the text with `${NAME}` in place of values."""
        if not self._shown:
            return text
        if self._pattern is None:
            longest_first = sorted(self._shown, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.sub(lambda found: self._shown[found[0]], text)


def _forms(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield the forms in which a value is shown, and what replaces each."""
    quoted, reference = repr(value), f"${{{name}}}"
    yield quoted, repr(reference)
    if len(value) >= _SECRET_CHARACTERS:
        yield quoted[1:-1], reference
        yield value, reference


def shorten(text: str) -> str:
    """Return a text in one line that controls no terminal, without its middle if it is long."""
    line = text
    if not text.isprintable():
        line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))
    if len(line) <= 2 * _SHOWN_CHARACTERS:
        return line
    return f"{line[:_SHOWN_CHARACTERS]} ... {line[-_SHOWN_CHARACTERS:]}"
