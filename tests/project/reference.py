"""Writes the tables of docs/configuration.md and docs/metrics.md from the code (`make docs`); a test compares them."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from gateway.config.actions import Fetch, Files, FormFields, Forward, Mirror, Split, Store
from gateway.config.filters import BuiltInFilters, Compress, Decompress, Digest, Scan, Sniff, Throttle
from gateway.config.kinds import Parser
from gateway.config.limits import Limits, RouteTimeouts
from gateway.config.model import Config, Log, Match, Ops, Route, Tls
from gateway.config.section import Key, Section
from gateway.config.upstream import Ejection, Health, Retries, Upstream, UpstreamTimeouts
from gateway.config.values import parse_delay, parse_percent, parse_rate, parse_seconds, parse_size
from gateway.errors import FaultKind
from gateway.observe.prometheus import METRICS

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS: dict[str, type[Section]] = {
    "": Config,
    "log": Log,
    "ops": Ops,
    "tls": Tls,
    "upstreams.NAME": Upstream,
    "upstreams.NAME.timeouts": UpstreamTimeouts,
    "upstreams.NAME.health": Health,
    "upstreams.NAME.ejection": Ejection,
    "upstreams.NAME.retries": Retries,
    "routes[]": Route,
    "routes[].match": Match,
    "routes[].forward": Forward,
    "routes[].forward.mirror": Mirror,
    "routes[].forward.form_fields": FormFields,
    "routes[].split": Split,
    "routes[].split.form_fields": FormFields,
    "routes[].store": Store,
    "routes[].files": Files,
    "routes[].fetch": Fetch,
    "routes[].filters[]": BuiltInFilters,
    "routes[].filters[].digest": Digest,
    "routes[].filters[].sniff": Sniff,
    "routes[].filters[].throttle": Throttle,
    "routes[].filters[].scan": Scan,
    "routes[].filters[].compress": Compress,
    "routes[].filters[].decompress": Decompress,
    "routes[].limits": Limits,
    "routes[].timeouts": RouteTimeouts,
}


def render_config() -> str:
    """Return the reference of every config key."""
    return "\n".join(_config_lines())


def _config_lines() -> Iterator[str]:
    for path, section in SECTIONS.items():
        yield f"### {'Top level' if not path else f'`{path}`'}\n"
        yield f"{inspect.cleandoc(section.__doc__ or '')}\n"
        yield "| key | default | meaning |"
        yield "|---|---|---|"
        types = get_type_hints(section)
        for name, key in section.keys.items():
            yield f"| `{name}` | {_default(key)} | {_meaning(key, types[name])} |"
        yield ""


def _meaning(key: Key, annotation: Any) -> str:
    choices = re.findall(r"'([a-z_]+)'", str(annotation)) if "Literal" in str(annotation) else []
    return key.description + (f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else "")


def _default(key: Key) -> str:
    if key.is_required:
        return "required"
    value: Any = key.default
    if isinstance(value, Section) or value in ((), {}):
        return "-"
    if isinstance(value, bool):
        value = "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{_number(key, value)}`"
    return f"`{value}`"


def _number(key: Key, value: float) -> str:
    """Write a number in the form of the config: the parser of its type decides the unit, a number without has none."""
    parser = key.kind.parse if isinstance(key.kind, Parser) else None
    if parser in (parse_seconds, parse_delay):
        return "off" if value == float("inf") else f"{value:g}s"
    if parser is parse_size:
        return "unlimited" if value == float("inf") else _size(value)
    if parser is parse_percent:
        return f"{value:.0%}"
    if parser is parse_rate:
        return f"{_size(value)}/s" if value else "off"
    return f"{value:g}"


def _size(value: float) -> str:
    for unit, exponent in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 2**exponent:
            return f"{value / 2**exponent:g}{unit}"
    return f"{value:g}"


def render_metrics() -> str:
    """Return the reference of every metric."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.series}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def render_faults() -> str:
    """Return the table of codes."""
    lines = ["| code | status | blame | outcome | Proxy-Status error |", "|---|---|---|---|---|"]
    for kind in FaultKind:
        info = kind.info
        lines.append(f"| `{kind.code}` | {info.status} | {info.blame} | `{info.outcome}` | `{info.proxy_error}` |")
    return "\n".join(lines)


TABLES = {"configuration.md": render_config, "metrics.md": render_metrics, "errors.md": render_faults}
_BEGIN, _END = "<!-- begin: written by `make docs` -->", "<!-- end -->"


def with_table(name: str) -> str:
    """Return the text of a page with its table as the code has it."""
    head, _, rest = (DOCS / name).read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n\n{TABLES[name]()}\n\n{_END}{tail}"


def main() -> int:
    """Write every page."""
    for name in TABLES:
        (DOCS / name).write_text(with_table(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
