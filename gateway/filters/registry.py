"""From the config's names to filters: the built-in ones, and plug-ins by entry point (group `gateway.filters`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from gateway.config import FilterChoice, Route
from gateway.config.filters import Compress, Decompress, Digest, Scan, Sniff, Throttle
from gateway.filters.coding import CompressFactory, DecompressFactory
from gateway.filters.digest import DigestFactory
from gateway.filters.file import FilterContext, FilterFactory, MakeFactory
from gateway.filters.scan import ScanFactory
from gateway.filters.sniff import SniffFactory
from gateway.filters.throttle import ThrottleFactory

_GROUP: Final = "gateway.filters"


class FilterProblem(Exception):
    """A filter that cannot be made: what, where, how to mend."""


def make_filters(route: Route, context: FilterContext) -> list[FilterFactory]:
    """Return the filters of a route. Raises FilterProblem."""
    return [
        _make(choice, f"routes.{route.name}.filters[{index}]", context) for index, choice in enumerate(route.filters)
    ]


def _make(choice: FilterChoice, where: str, context: FilterContext) -> FilterFactory:
    try:
        made = _make_own(choice.options, context)
    except ImportError as exc:
        raise FilterProblem(f"{where}: {choice.name} needs a package that is not here: pip install {exc.name}") from exc
    return made if made is not None else _make_plugin(choice.name, choice.options, where, context)


def _make_own(options: Any, context: FilterContext) -> FilterFactory | None:
    kind: FilterFactory | None = None
    match options:
        case Digest():
            kind = DigestFactory(options.algorithm, context)
        case Sniff():
            kind = SniffFactory(options.allow)
        case Throttle():
            kind = ThrottleFactory(options.rate, options.per)
        case Scan():
            kind = ScanFactory(options.clamd, options.timeout, options.on_error, context)
        case Compress():
            kind = CompressFactory(options.coding, options.level, context)
        case Decompress():
            kind = DecompressFactory(options.max_bytes, context)
    return kind


def _make_plugin(name: str, options: Any, where: str, context: FilterContext) -> FilterFactory:
    found = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if name not in found:
        known = ", ".join(sorted({*FilterChoice.model_fields, *found}))
        raise FilterProblem(f"{where}: no filter {name!r}: use one of {known}, or install the package that brings it")
    make: MakeFactory = found[name].load()
    if not isinstance(options, Mapping):
        raise FilterProblem(f"{where}.{name}: {options!r} is not a mapping: indent the filter's options below its name")
    try:
        return make(options, context)
    except ValueError as exc:
        raise FilterProblem(f"{where}.{name}: {exc}") from exc
