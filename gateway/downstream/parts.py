"""How the parts of a form ended, and the files of a split: what the log and the outcome of an exchange say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.errors import Blame, Outcome


class Part(NamedTuple):
    """A part of a form that has ended."""

    number: int
    kind: str
    size: int
    outcome: Outcome
    #: What filters found out.
    facts: Mapping[str, Any] | None


class FileEnd(NamedTuple):
    """How one file ended that was sent by itself."""

    outcome: Outcome
    blame: Blame


def worse_file(before: FileEnd | None, end: FileEnd) -> FileEnd | None:
    """Return the one with the worse blame (the order of `Blame`), the first of those; None where none has failed."""
    order = list(Blame)
    return end if order.index(end.blame) > order.index(before.blame if before else Blame.NONE) else before
