"""Filters: what looks at bytes on their way.

`limit` looks at whole bodies (interface: `gateway.transfer.transfer.Filter`). The others look at files, through the
public interface in `file`: `Observer` and `TransformKind`; see docs/filters.md for how to write one. `along` shows the
files of a body carried byte for byte to observers, `file.FilteredFile` pulls a file through its filters.
"""

from gateway.filters.digest import DigestKind
from gateway.filters.file import (
    FileHead,
    FilterContext,
    FilteredFile,
    FilterKind,
    Observer,
    ObserverKind,
    TransformKind,
    head_of,
)
from gateway.filters.form_observer import FilesAlong
from gateway.filters.limit import BodyLimit
from gateway.filters.registry import FilterProblem, make_filters

__all__ = [
    "BodyLimit",
    "DigestKind",
    "FileHead",
    "FilesAlong",
    "FilterContext",
    "FilterKind",
    "FilterProblem",
    "FilteredFile",
    "Observer",
    "ObserverKind",
    "TransformKind",
    "head_of",
    "make_filters",
]
