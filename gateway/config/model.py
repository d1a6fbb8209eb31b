"""The keys of the config with their types, defaults and reasons. Checks that need two keys are in `check`.

The keys of upstreams, actions, limits and filters are in modules of their names. The descriptions are the reference
text: the tables of docs/configuration.md are generated from them.
"""

from __future__ import annotations

import functools
from typing import Final, Literal

from gateway.config.actions import Fetch, Files, Forward, Split, Store
from gateway.config.filters import FilterChoice
from gateway.config.limits import Limits, RouteTimeouts
from gateway.config.section import Host, Method, Name, NetworkText, Regex, Section, UrlPath, config_key
from gateway.config.upstream import Upstream
from gateway.config.values import Address, Delay, ListenAddress, Seconds, SecretText, Switch, WorkerCount
from gateway.config.variables import Variables

Lanes = Literal["auto", "copy"]


class Ops(Section):
    """The operations port, for metrics and health checks; they are never served on the traffic port."""

    listen: ListenAddress = config_key(
        Address("127.0.0.1", 9090),
        description="Address of metrics, health, /drain, the live page and its API. Keep it off public networks: "
        "health and metrics have no access control, and without `token` the others have none either.",
    )
    token: SecretText | None = config_key(
        None,
        description="Bearer token that the API and /drain require (`Authorization: Bearer TOKEN`); health, metrics and "
        "the files of the live page, in which there is no data, never do. Default: none is required.",
    )
    allow_hosts: tuple[Host, ...] = config_key(
        (),
        description="Host names, besides IP addresses and `localhost`, that a request may have in its Host header; "
        "others are 403, except on health and metrics, so that a web page cannot reach the port through a DNS name of "
        "its own (DNS rebinding).",
    )
    drain: Switch = config_key(
        False,
        description="Whether GET /drain starts a drain: readiness off, accept for `drain_delay`, then wait up to "
        "`drain_timeout` for exchanges; the response comes when that is done. For `preStop` hooks, so a request "
        "with a header that only browsers send is 403; off by default, because only a restart ends a drain.",
    )


class Log(Section):
    """The log on standard output."""

    format: Literal["auto", "text", "json"] = config_key(
        "auto",
        description="What a line looks like. `json`: one object per line, for programs. `text`: for people. `auto`: "
        "text with colors on a terminal (none if `NO_COLOR` is set), JSON otherwise. Change it with a restart.",
    )


class Tls(Section):
    """TLS for clients on the traffic port: TLS 1.2 or 1.3, HTTP/1.1."""

    certificate: str = config_key(
        description="PEM file with the server certificate, followed by its intermediate certificates."
    )
    key: str = config_key(description="PEM file with the private key of the certificate, without a passphrase.")


class Match(Section):
    """Conditions of a route: a request must meet all that are given."""

    host: Host | None = config_key(
        None, description="Host name without port; `*.example` matches any subdomain. Default: any host."
    )
    path: UrlPath | None = config_key(None, description="The whole path, exactly.")
    prefix: UrlPath | None = config_key(
        None, description="A path prefix of whole segments: /a matches /a and /a/b, but not /ab."
    )
    regex: Regex | None = config_key(
        None, description="A regular expression (Python's) that must match the whole path."
    )
    methods: tuple[Method, ...] | None = config_key(
        None,
        description="HTTP methods. Default: any for forward; POST and PUT for split and store; GET and HEAD for files "
        "and fetch.",
    )
    headers: dict[str, str] = config_key(
        {}, description="Headers that the request must have, with exactly these values, as NAME: VALUE."
    )
    form_fields: dict[str, str] = config_key(
        {},
        description="Form fields that a form must have before its first file, as NAME: PATTERN, with `*` for any "
        "characters. A form that matches no such route goes to the route with the same other conditions and no "
        "form_fields; without such a route the response is 422.",
    )


class Route(Section):
    """A route: its conditions, exactly one action, and the limits for its requests."""

    name: Name = config_key(description="Label `route` in metrics and logs; unique.")
    match: Match = config_key(description="Conditions a request must meet.")
    forward: Forward | None = config_key(
        None, description="Action: stream the request to an upstream and its response back."
    )
    split: Split | None = config_key(
        None, description="Action: send every file of a form to an upstream in its own request."
    )
    store: Store | None = config_key(
        None, description="Action: store every file of an upload in a directory or a bucket."
    )
    files: Files | None = config_key(None, description="Action: serve files of a directory or a bucket.")
    fetch: Fetch | None = config_key(None, description="Action: download from a URL that the client names.")
    filters: tuple[FilterChoice, ...] = config_key(
        (), description="Filters for the files of uploads, in the order in which they run; see docs/filters.md."
    )
    limits: Limits = config_key(Limits(), description="Limits on the size of a request.")
    timeouts: RouteTimeouts = config_key(RouteTimeouts(), description="Time limits for a client.")

    @property
    def action(self) -> Forward | Split | Store | Files | Fetch:
        """The section of the route's action. Raises ValueError if there is none."""
        for action in (self.forward, self.split, self.store, self.files, self.fetch):
            if action is not None:
                return action
        raise ValueError(f"route {self.name!r} has no action")

    @property
    def written_directory(self) -> str | None:
        """The directory that `store` or a mirror writes to, None if there is none."""
        if self.store is not None:
            return self.store.directory
        mirror = self.forward.mirror if self.forward is not None else None
        return mirror.directory if mirror is not None else None

    @property
    def upstream(self) -> str:
        """The name of the upstream of forward or split, "" for other actions."""
        action = self.forward or self.split
        return action.upstream if action is not None else ""

    @functools.cached_property
    def action_name(self) -> str:
        """The config key of the action, for example `forward`."""
        return type(self.action).__name__.lower()


ACTIONS: Final = ("forward", "split", "store", "files", "fetch")


class Config(Section):
    """The keys at the top level of the file."""

    listen: ListenAddress = config_key(
        Address("127.0.0.1", 8080), description="Address of the traffic port; `:8080` listens on all addresses."
    )
    workers: WorkerCount = config_key(
        1,
        description="Processes that share the traffic port, each with an event loop of its own: one keeps one core "
        "busy. `auto`: one for each core this container may use. Limits and metrics are those of all workers. Changing "
        "it from or to 1 needs a restart. Default: 1, a single process, which takes the least memory.",
    )
    tls: Tls | None = config_key(None, description="TLS on the traffic port. Default: plain HTTP.")
    log: Log = config_key(Log(), description="The log on standard output.")
    ops: Ops = config_key(Ops(), description="The operations port.")
    trusted_proxies: tuple[NetworkText, ...] = config_key(
        (),
        description="Networks of proxies whose X-Forwarded-*, Forwarded, X-Request-Id and traceparent headers are "
        "kept; those of other clients are replaced.",
    )
    max_connections: int = config_key(
        10_000,
        ge=1,
        description="Connections of clients at the same time, TLS handshakes included; further ones wait until one "
        "closes. For them, idle kept ones are closed, and handshakes that take longer than 1 s. Protects the memory: "
        "an idle one holds about 10 KiB, or 280 KiB over TLS. Half of the descriptors (`ulimit -n`) is a limit too.",
    )
    drain_timeout: Seconds = config_key(
        30.0,
        description="Limit for exchanges in flight to finish after SIGTERM and `drain_delay`; after it they are cut. "
        "Both together must be below the pod's termination grace period.",
    )
    drain_delay: Delay = config_key(
        0.0,
        description="Time for which connections are still accepted after SIGTERM, while /readyz is 503: what balances "
        "load over several gateways needs a while to notice. Default: none, for a gateway that stands alone.",
    )
    lanes: Lanes = config_key(
        "auto",
        description="How bytes are moved. `auto`: the fastest lane both connections allow (direct or splice; express "
        "for small exchanges; copy otherwise). `copy`: always through aiohttp's transports and parsers, in a task.",
    )
    upstreams: dict[Name, Upstream] = config_key({}, description="Upstream services by name.")
    routes: tuple[Route, ...] = config_key(
        min_length=1, description="Routes. Their order decides between routes of equal precedence."
    )
    #: Of the class: none are used.
    _variables = Variables()

    def record_variables(self, variables: Variables) -> None:
        """Remember the environment variables whose values are in the config."""
        vars(self)["_variables"] = variables

    def hide(self, text: str) -> str:
        """Return a text about the config, with `${NAME}` in place of the values of environment variables."""
        return self._variables.hide(text)
