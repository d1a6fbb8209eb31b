"""Writes metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0.

prometheus_client writes each sample through several objects and a formatted list of labels: 210 ms for 50 routes, in
which no byte of traffic moves. Here the lines of one histogram, or of one set of counters, are one block: its
text is kept, and used again as long as its numbers are the same; so are all lines of a section whose source is the
same. 50 routes take 6 ms if all numbers have changed, 1.5 ms if none has, and 0.5 ms if none of the sources has; the
blocks take 25 KiB per route. Names and numbers are the same, and tests read the text with the parser of
prometheus_client.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import Any, Final, Literal

from gateway.observe.stats import Histogram

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]
#: One number, a histogram, or counters by what the last labels say.
Value = float | Histogram | dict[Any, Any]


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric: `name` is without `_total`, which the series of counters have."""

    kind: Kind
    name: str
    help: str
    labels: Sequence[str] = ()

    @property
    def series(self) -> str:
        """The name of its series; those of histograms have a suffix each."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @functools.cached_property
    def line(self) -> Callable[..., str]:
        """Makes a line of the values of all labels and a number."""
        # In alphabetical order, as prometheus_client writes them.
        columns = sorted((label, place) for place, label in enumerate(self.labels))
        labels = ",".join([f'{label}="{{{place}}}"' for label, place in columns])
        braces = f"{{{{{labels}}}}}" if columns else ""
        return f"{self.series}{braces} {{{len(columns)}}}\n".format


#: A series: its metric, the values of its labels, and its number.
#:
#: Counters are several series: each key has the values of the labels that are missing.
Row = tuple[Metric, Sequence[str], Value]


@dataclass(frozen=True, slots=True)
class Section:
    """The series of one subject, such as a route.

    `rows` are read only if `source` is not that of the last text: an object whose numbers never change, or None.
    """

    name: Hashable
    rows: Iterable[Row]
    source: object = None


@dataclass(slots=True)
class _Block:
    """The lines of one row, and what they say. A metric has the same bounds for ever."""

    metric: Metric
    values: Sequence[str]
    value: Value
    text: str
    #: Of a histogram or of counters.
    numbers: Any = None
    total: float = 0.0
    #: The lines with a `%s` for each number; "" until the numbers have changed once.
    template: str = ""


@dataclass(slots=True)
class _Written:
    """A section of the last text."""

    source: object
    #: Those of its rows.
    blocks: list[_Block]


class Writer:
    """Writes sections again and again. Used by one thread at a time."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """`metrics` are in every text, with their series or without any; before others that a section has."""
        self._metrics = {metric.name: metric for metric in metrics}
        #: Those of the last text, by their names.
        self._written: dict[Hashable, _Written] = {}

    def write(self, sections: Iterable[Section], *, is_openmetrics: bool) -> bytes:
        """Return the text of all series."""
        known, self._written = self._written, {}
        metrics = self._metrics.copy()
        texts: dict[str, list[str]] = {name: [] for name in metrics}
        for section in sections:
            # Taken out: what is replaced is freed at once, so that there is nothing for the garbage collector.
            written = known.pop(section.name, None)
            if written is None or section.source is None or written.source is not section.source:
                written = _write_section(written, section)
            self._written[section.name] = written
            for block in written.blocks:
                name = block.metric.name
                if name not in texts:
                    metrics[name], texts[name] = block.metric, []
                texts[name].append(block.text)
        pieces: list[str] = []
        for name, metric in metrics.items():
            subject = name if is_openmetrics else metric.series
            pieces.append(f"# HELP {subject} {_escape(metric.help)}\n# TYPE {subject} {metric.kind}\n")
            pieces += texts[name]
        if is_openmetrics:
            pieces.append("# EOF\n")
        return "".join(pieces).encode()


def _write_section(before: _Written | None, section: Section) -> _Written:
    known = chain(before.blocks if before is not None else (), repeat(None))
    blocks: list[_Block] = []
    for (metric, values, value), block in zip(section.rows, known, strict=False):
        # Others if rows have come or gone.
        is_same = block is not None and block.metric is metric and block.values == values
        if block is None or not is_same or block.value is not value or section.source is None:
            blocks.append(_write_row(block if is_same else None, metric, values, value))
        else:
            blocks.append(block)
    return _Written(section.source, blocks)


def _write_row(before: _Block | None, metric: Metric, values: Sequence[str], value: Value) -> _Block:
    if isinstance(value, Histogram):
        return _write_histogram(before, metric, values, value)
    if isinstance(value, dict):
        return _write_counters(before, metric, values, value)
    text = metric.line(*map(_escape, values), "+Inf" if value == math.inf else value)
    return _Block(metric, values, value, text)


# Both copy the numbers in one step: an event loop may count meanwhile.


def _write_counters(before: _Block | None, metric: Metric, values: Sequence[str], counters: dict[Any, Any]) -> _Block:
    numbers = dict(counters)
    if before is not None and before.numbers == numbers:
        return before
    is_same = before is not None and list(before.numbers) == list(numbers)
    template = before.template if before is not None and is_same else ""
    if not template:
        fixed = [_escape(each).replace("%", "%%") for each in values]
        keys = [key if isinstance(key, tuple) else (key,) for key in numbers]
        lines = [metric.line(*fixed, *[_escape(str(each)).replace("%", "%%") for each in key], "%s") for key in keys]
        template = "".join(lines)
    text = template % tuple(numbers.values())
    return _Block(metric, values, counters, text, numbers, template=template if is_same else "")


def _write_histogram(before: _Block | None, metric: Metric, values: Sequence[str], histogram: Histogram) -> _Block:
    counts, total = histogram.counts[:], histogram.total
    if before is not None and before.total == total and before.numbers == counts:
        return before
    template = before.template if before is not None else ""
    if not template:
        # In alphabetical order, with `le` of the buckets among them.
        pairs = sorted(zip(metric.labels, map(_escape, values), strict=True))
        labels = [f'{label}="{value}"'.replace("%", "%%") for label, value in pairs]
        place = sum(label < "le" for label, _ in pairs)
        start = f"{metric.name}_bucket{{" + "".join([f"{label}," for label in labels[:place]])
        end = "".join([f",{label}" for label in labels[place:]]) + "}"
        around = f"{{{','.join(labels)}}}" if labels else ""
        lines = [f'{start}le="{bound}"{end} %s\n' for bound in _show_bounds(tuple(histogram.bounds))]
        template = "".join([*lines, f"{metric.name}_count{around} %s\n{metric.name}_sum{around} %s\n"])
    sums = list(accumulate(counts))
    text = template % (*sums, sums[-1], total)
    return _Block(metric, values, histogram, text, counts, total, template if before is not None else "")


@functools.lru_cache(maxsize=64)
def _show_bounds(bounds: tuple[float, ...]) -> list[str]:
    return [*(str(float(bound)) for bound in bounds), "+Inf"]


@functools.lru_cache(maxsize=4096)
def _escape(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text
