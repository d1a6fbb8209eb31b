"""The page of the gateway's processes."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    INSTANCE,
    RATE,
    Query,
    Row,
    lines,
    page,
    rate,
    total,
)

_JOB: Final = f'job=~"streaming-gateway.*",{INSTANCE}'
PAGE: Final = page(
    "process",
    "Process",
    "CPU, memory, descriptors, connections, config and log of the gateways.",
    ["instance"],
    [
        Row(
            "Resources",
            [
                lines(
                    "CPU",
                    "Cores in use; one worker uses at most one.",
                    "short",
                    Query(f"rate(process_cpu_seconds_total{{{_JOB}}}{RATE})", "{{instance}}"),
                    width=8,
                ),
                lines(
                    "Memory",
                    "Resident memory: flat, whatever the size of the bodies.",
                    "decbytes",
                    Query(f"process_resident_memory_bytes{{{_JOB}}}", "{{instance}} resident"),
                    Query(f"process_virtual_memory_bytes{{{_JOB}}}", "{{instance}} virtual"),
                    width=8,
                ),
                lines(
                    "Descriptors",
                    "Open, of those allowed; GatewayDescriptorsLow fires at 80 %.",
                    "percentunit",
                    Query(f"process_open_fds{{{_JOB}}} / process_max_fds{{{_JOB}}}", "{{instance}}"),
                    width=8,
                ),
            ],
        ),
        Row(
            "Workers",
            [
                lines(
                    "Workers",
                    "Worker processes that serve, and those that did not respond to the scrape within a second.",
                    "short",
                    Query(total("gateway_workers", INSTANCE, "instance"), "{{instance}} serving"),
                    Query(total("gateway_workers_stale", INSTANCE, "instance"), "{{instance}} stale"),
                ),
                lines(
                    "Workers replaced",
                    "Workers that died within the interval and were replaced: the log has their last words.",
                    "short",
                    Query(
                        f"sum by (instance) (increase(gateway_worker_restarts_total{{{INSTANCE}}}{RATE}))",
                        "{{instance}}",
                    ),
                ),
            ],
        ),
        Row(
            "Connections",
            [
                lines(
                    "Connections of clients",
                    "Active: with an exchange in progress. Idle: kept for the next.",
                    "short",
                    Query(total("gateway_connections", INSTANCE, "instance, state"), "{{instance}} {{state}}"),
                ),
                lines(
                    "Uptime",
                    "Seconds since the process started.",
                    "s",
                    Query(f"time() - process_start_time_seconds{{{_JOB}}}", "{{instance}}"),
                ),
            ],
        ),
        Row(
            "Config, log and version",
            [
                lines(
                    "Age of the config",
                    "Seconds since the config in force was loaded.",
                    "s",
                    Query(
                        f"time() - gateway_config_last_reload_success_timestamp_seconds{{{INSTANCE}}}", "{{instance}}"
                    ),
                    width=6,
                ),
                lines(
                    "Reloads",
                    "Config reloads within the interval, by result.",
                    "short",
                    Query(
                        f"sum by (instance, result) (increase(gateway_config_reloads_total{{{INSTANCE}}}{RATE}))",
                        "{{instance}} {{result}}",
                    ),
                    width=6,
                ),
                lines(
                    "Log lines dropped",
                    "Lines per second that were never written: standard output was blocked, full or closed.",
                    "cps",
                    Query(rate("gateway_log_lines_dropped_total", INSTANCE, "instance"), "{{instance}}"),
                    width=6,
                ),
                lines(
                    "Gateways by version",
                    "A rollout shows as one version taking the place of the other.",
                    "short",
                    Query(
                        f"count by (version, aiohttp, python) (gateway_build_info{{{INSTANCE}}})",
                        "{{version}}, aiohttp {{aiohttp}}, Python {{python}}",
                    ),
                    width=6,
                ),
            ],
        ),
    ],
)
