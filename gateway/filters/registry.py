"""Create the filters of a route: built-in filters, and plug-ins from entry points of the group `gateway.filters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.config import FilterChoice, Route
from gateway.config.filters import BuiltInFilters, Compress, Decompress, Digest, Scan, Sniff, Throttle
from gateway.filters.coding import CompressFactory, DecompressFactory
from gateway.filters.digest import DigestFactory
from gateway.filters.file import FilterContext, FilterFactory, MakeFactory
from gateway.filters.scan import ScanFactory
from gateway.filters.sniff import SniffFactory
from gateway.filters.throttle import ThrottleFactory
from gateway.sharing import SharedLimits

_GROUP: Final = "gateway.filters"


class FilterProblem(Exception):
    """A filter cannot be created. The message says what is wrong, where, and how to mend it."""


def make_filters(route: Route, context: FilterContext, limits: SharedLimits | None = None) -> list[FilterFactory]:
    """Return the filters of a route in the order of the config. Raises FilterProblem.

    `limits` are those that a worker shares with others.
    """
    return [
        _make(choice, f"routes.{route.name}.filters[{index}]", context, limits)
        for index, choice in enumerate(route.filters)
    ]


def _make(choice: FilterChoice, where: str, context: FilterContext, limits: SharedLimits | None) -> FilterFactory:
    try:
        if isinstance(choice.options, Throttle):
            return ThrottleFactory(choice.options.rate, choice.options.per, f"{where}.throttle", limits)
        factory = _make_builtin(choice.options, context)
    except ImportError as exc:
        raise FilterProblem(f"{where}: {choice.name} needs a package that is missing: pip install {exc.name}") from exc
    return factory if factory is not None else _make_plugin(choice.name, choice.options, where, context)


def _make_builtin(options: Any, context: FilterContext) -> FilterFactory | None:
    factory: FilterFactory | None = None
    match options:
        case Digest():
            factory = DigestFactory(options.algorithm, context)
        case Sniff():
            factory = SniffFactory(options.allow)
        case Scan():
            factory = ScanFactory(options.clamd, options.timeout, options.on_error, context)
        case Compress():
            factory = CompressFactory(options.coding, options.level, context)
        case Decompress():
            factory = DecompressFactory(options.max_bytes, context)
    return factory


def _make_plugin(name: str, options: Any, where: str, context: FilterContext) -> FilterFactory:
    # With all that it imports it takes 0.4 MiB: not for gateways without plug-ins.
    from importlib.metadata import entry_points  # noqa: PLC0415 (see above)

    found = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if name not in found:
        known = ", ".join(sorted({*BuiltInFilters.keys, *found}))
        raise FilterProblem(f"{where}: no filter {name!r}: use one of {known}, or install its package")
    make: MakeFactory = found[name].load()
    if not isinstance(options, Mapping):
        raise FilterProblem(f"{where}.{name}: {options!r} is not a mapping: indent the filter's options below its name")
    try:
        return make(options, context)
    except ValueError as exc:
        raise FilterProblem(f"{where}.{name}: {exc}") from exc
