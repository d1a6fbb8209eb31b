"""Filters: they check or change the bytes of uploads while they are streamed.

`limit` counts whole bodies (interface: `gateway.transfer.transfer.Filter`). The others process files, through the
public interface in `file`: `Observer` and `TransformFactory`; docs/filters.md describes how to write one.
`form_observer` runs observers on the files of a body that is forwarded byte for byte; `file.FilteredFile` pulls a file
through its filters.
"""

from gateway.filters.digest import DigestFactory
from gateway.filters.file import (
    FileHead,
    FilterContext,
    FilteredFile,
    FilterFactory,
    Observer,
    ObserverFactory,
    TransformFactory,
    head_of,
    join_headers,
)
from gateway.filters.form_observer import FormObserver
from gateway.filters.limit import BodyLimit
from gateway.filters.registry import FilterProblem, make_filters

__all__ = [
    "BodyLimit",
    "DigestFactory",
    "FileHead",
    "FilterContext",
    "FilterFactory",
    "FilterProblem",
    "FilteredFile",
    "FormObserver",
    "Observer",
    "ObserverFactory",
    "TransformFactory",
    "head_of",
    "join_headers",
    "make_filters",
]
