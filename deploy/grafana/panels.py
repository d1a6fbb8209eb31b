"""The building blocks of the dashboards: queries, panels of one unit each, variables, and a page of rows.

Grafana's own SDK builds them, so names and types are those of its schema; it is a dependency of the tests, not of the
gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

TAG: Final = "streaming-gateway"
DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: The window of a rate: at least four scrapes, whatever the range that is looked at.
RATE: Final = "[$__rate_interval]"
#: Selectors for the variables of a page.
INSTANCE: Final = 'instance=~"$instance"'
ROUTE: Final = f'{INSTANCE},route=~"$route"'
UPSTREAM: Final = f'{INSTANCE},upstream=~"$upstream"'
#: A metric that several pages show.
MOVED: Final = "gateway_transfer_bytes_total"
#: As on the live page: blue is the client, cyan the upstream, purple the model, red its queue, brown the disk.
_LEG_COLORS: Final = {
    "downstream_read": "#4a90d9",
    "downstream_write": "#8bbcf0",
    "connect": "#0b7285",
    "upstream_write": "#22a6b3",
    "upstream_read": "#7fd3dd",
    "upstream_response": "#b45fae",
    "queue": "#d9553b",
    "disk_write": "#b9770e",
    "disk_read": "#dcae62",
    "filter": "#8a949e",
}
_STATUS_COLORS: Final = {"2..": "green", "3..": "blue", "4..": "yellow", "5..": "red"}
_HEIGHT: Final = 8
_STAT_HEIGHT: Final = 4

PanelBuilder = Builder[models.Panel]


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and the name of its series: `{{label}}` is replaced."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Row:
    """A heading with the panels below it."""

    title: str
    panels: Sequence[PanelBuilder]


def lines(
    title: str, meaning: str, unit: str, *queries: Query, width: int = 12, is_stacked: bool = False
) -> timeseries.Panel:
    """Return a panel of lines over time, or of stacked areas."""
    panel = timeseries.Panel().title(title).description(meaning).unit(unit).min(0)
    panel = panel.datasource(DATASOURCE).height(_HEIGHT).span(width).targets(_targets(queries))
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = panel.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    if is_stacked:
        stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
        panel = panel.stacking(stacking).fill_opacity(60).line_width(0)
    return panel


def number(
    title: str, meaning: str, unit: str, query: Query, *, warn: float | None = None, alarm: float | None = None
) -> stat.Panel:
    """Return a panel of one number, the last; yellow from `warn`, red from `alarm`, which may be the lower one."""
    panel = stat.Panel().title(title).description(meaning).unit(unit).no_value("-")
    panel = panel.datasource(DATASOURCE).height(_STAT_HEIGHT).span(4).targets(_targets([query]))
    panel = panel.graph_mode(common_models.BigValueGraphMode.AREA).color_mode(common_models.BigValueColorMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.thresholds(
        dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(_steps(warn, alarm))
    )


def who_is_slow(selector: str) -> timeseries.Panel:
    """Return the panel that stacks what exchanges wait for, in the same colors on each page."""
    meaning = (
        "Exchanges that wait for each leg, stacked. upstream_response is the service itself, queue a free slot of it, "
        "downstream_read and downstream_write the client."
    )
    waiting = Query(rate("gateway_wait_seconds_total", selector, "leg") + " > 0", "{{leg}}")
    panel = lines("Who is slow", meaning, "short", waiting, is_stacked=True)
    for leg, color in _LEG_COLORS.items():
        panel = panel.override_by_name(leg, [_fixed(color)])
    return panel


def statuses(selector: str) -> timeseries.Panel:
    """Return the panel that stacks requests by status, in a color for each class of statuses."""
    ended = Query(rate("gateway_requests_total", selector, "code"), "{{code}}")
    meaning = "Exchanges that end per second; 499: the client left before the response."
    panel = lines("Requests by status", meaning, "reqps", ended, is_stacked=True)
    for pattern, color in _STATUS_COLORS.items():
        panel = panel.override_by_regexp(f"/^{pattern}$/", [_fixed(color)])
    return panel


def _fixed(color: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})


def _steps(warn: float | None, alarm: float | None) -> list[models.Threshold]:
    if warn is None and alarm is not None:
        # What falls below `alarm` is bad.
        return [models.Threshold(value=None, color="red"), models.Threshold(value=alarm, color="green")]
    steps = [models.Threshold(value=None, color="green")]
    if warn is not None:
        steps.append(models.Threshold(value=warn, color="yellow"))
    if alarm is not None:
        steps.append(models.Threshold(value=alarm, color="red"))
    return steps


def cells(title: str, meaning: str, unit: str, buckets: str, *, width: int = 12) -> heatmap.Panel:
    """Return a heatmap of the buckets of a histogram; `buckets` sums their increase by `le`."""
    target = _target(Query(buckets, "{{le}}"), 0).format(prometheus_models.PromQueryFormat.HEATMAP)
    panel = heatmap.Panel().title(title).description(meaning).datasource(DATASOURCE).height(_HEIGHT).span(width)
    panel = panel.targets([target]).calculate(False).y_axis(heatmap.YAxisConfig().unit(unit))
    color = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return panel.color(color.scale(heatmap_models.HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill("dark-orange"))


def states(title: str, meaning: str, *queries: Query, width: int = 24) -> statetimeline.Panel:
    """Return a panel of what was up (1) and down (0) when."""
    panel = statetimeline.Panel().title(title).description(meaning).datasource(DATASOURCE)
    panel = panel.height(_HEIGHT).span(width).targets(_targets(queries))
    results = {
        "0": models.ValueMappingResult(text="down", color="red", index=0),
        "1": models.ValueMappingResult(text="up", color="green", index=1),
    }
    return panel.mappings([models.ValueMap(options=results)]).show_value(common_models.VisibilityMode.NEVER)


def page(name: str, title: str, meaning: str, variables: Sequence[str], rows: Sequence[Row]) -> models.Dashboard:
    """Return a dashboard: a row after the other, each filled from left to right."""
    board = dashboard.Dashboard(f"Streaming gateway / {title}").uid(f"{TAG}-{name}").description(meaning)
    board = board.tags([TAG]).refresh("10s").time("now-1h", "now").timezone("browser").editable()
    board = board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink("Streaming gateway").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    board = board.link(link.as_dropdown(True).include_vars(True).keep_time(True))
    board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    alerts = f'ALERTS{{alertname=~"Gateway.+",alertstate="firing",{INSTANCE}}}'
    annotation = dashboard.AnnotationQuery().name("Alerts").datasource(DATASOURCE).enable(True).icon_color("red")
    board = board.annotation(annotation.expr(alerts))
    for variable in variables:
        board = board.with_variable(_variable(variable))
    for row in rows:
        board = board.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            board = board.with_panel(panel)
    built = board.build()
    for variable_model in built.templating.list_val or []:
        # Of interval variables only.
        variable_model.auto = variable_model.auto_min = variable_model.auto_count = None
    for place, each in enumerate(built.panels or [], 1):
        each.id_val = place
    return built


#: Where the values of each variable come from: series that are there from the start.
_SOURCES: Final = {
    "instance": "label_values(gateway_build_info, instance)",
    "route": f"label_values(gateway_requests_in_flight{{{INSTANCE}}}, route)",
    "upstream": f"label_values(gateway_upstream_slots{{{INSTANCE}}}, upstream)",
}


def _variable(name: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(name.capitalize()).query(_SOURCES[name]).datasource(DATASOURCE)
    # `.*`: requests without a route have the empty label.
    variable = variable.multi(True).include_all(True).all_value(".*")
    variable = variable.current(models.VariableOption(selected=True, text="All", value="$__all"))
    return variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)


def _targets(queries: Sequence[Query]) -> list[Builder[variants.Dataquery]]:
    return [_target(query, place) for place, query in enumerate(queries)]


def _target(query: Query, place: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place))
    return target.range().datasource(DATASOURCE).editor_mode(prometheus_models.QueryEditorMode.CODE)


def quantile(share: float, metric: str, selector: str, by: str) -> str:
    """Return the quantile of a histogram over the last interval, by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}{RATE})))"


def quantiles(metric: str, selector: str, by: str, *shares: float) -> list[Query]:
    """Return a query for each quantile of a histogram, by one label."""
    return [Query(quantile(share, metric, selector, by), f"{{{{{by}}}}} p{share * 100:g}") for share in shares]


def rate(metric: str, selector: str, by: str) -> str:
    """Return the increase of a counter per second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}{RATE}))"


def total(metric: str, selector: str, by: str = "") -> str:
    """Return a gauge, summed by labels."""
    return f"sum by ({by}) ({metric}{{{selector}}})" if by else f"sum({metric}{{{selector}}})"
