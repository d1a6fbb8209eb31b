"""The keys of the config, their types, defaults and reasons. Nothing here looks at two keys at once: `check` does.

Each field's description is the reference text: docs/configuration.md is held to it by a test.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import Field

from gateway.config.filters import FilterChoice
from gateway.config.section import FieldName, Host, Method, Name, NetworkText, Regex, S3Url, Section, UrlPath
from gateway.config.values import Address, EndpointUrl, ListenAddress, Rate, Seconds, Size

Policy = Literal["round_robin", "least_requests", "random_two"]
Framing = Literal["auto", "length_required", "chunked"]
IfExists = Literal["rename", "reject", "replace"]
Naming = Literal["original", "uuid"]
FileBody = Literal["multipart", "raw"]
Lanes = Literal["auto", "copy"]

_MIB, _GIB = float(2**20), float(2**30)


class Ops(Section):
    """The second port: metrics and health, never on the traffic port."""

    listen: ListenAddress = Field(
        Address("127.0.0.1", 9090), description="Address of /metrics, /healthz and /readyz. Not for the public."
    )


class Tls(Section):
    """TLS for clients on the traffic port: TLS 1.2 or 1.3, HTTP/1.1."""

    certificate: str = Field(description="PEM file with the certificate and the chain behind it.")
    key: str = Field(description="PEM file with its private key, without a passphrase.")


class UpstreamTimeouts(Section):
    """How long an upstream may take, per step."""

    connect: Seconds = Field(2.0, description="Name lookup, TCP and TLS, per endpoint tried.")
    response: Seconds = Field(60.0, description="From the end of the request body to the first byte of the answer.")
    idle: Seconds = Field(60.0, description="Between two chunks, when the upstream is the one being waited for.")


class Health(Section):
    """Active health checks: GET `path`, any 2xx or 3xx passes."""

    path: UrlPath = Field(description="Target of the check on every endpoint.")
    interval: Seconds = Field(5.0, description="Between two checks of one endpoint.")
    timeout: Seconds = Field(2.0, description="For the whole check.")
    passes: int = Field(1, ge=1, description="Checks in a row that bring an endpoint back.")
    fails: int = Field(2, ge=1, description="Checks in a row that take an endpoint out.")


class Upstream(Section):
    """A named service and its endpoints."""

    endpoints: Annotated[tuple[EndpointUrl, ...], Field(min_length=1)] = Field(
        description="Addresses of the service, http:// or https://, without a path."
    )
    policy: Policy = Field("round_robin", description="Which endpoint gets the next request.")
    timeouts: UpstreamTimeouts = Field(UpstreamTimeouts(), description="Per-step time limits.")
    framing: Framing = Field(
        "auto",
        description="How request bodies are framed: Content-Length where it is known and chunked otherwise; "
        "Content-Length or 411, for WSGI servers that take no chunks; or always chunked.",
    )
    health: Health | None = Field(None, description="Active health checks; without it every endpoint counts as up.")
    max_in_flight: Size = Field(
        math.inf, description="Exchanges at once; further ones wait. Set it to what the model server can take."
    )
    max_queued: int = Field(100, ge=0, description="How many may wait for a slot; further ones get 503 at once.")
    queue_timeout: Seconds = Field(10.0, description="How long one may wait for a slot before its 503.")


class Match(Section):
    """Which requests a route takes: all given conditions must hold."""

    host: Host | None = Field(
        None, description="Host without port; `*.example` matches any subdomain. Default: any host."
    )
    path: UrlPath | None = Field(None, description="The whole path, exactly.")
    prefix: UrlPath | None = Field(None, description="A path prefix, by whole segments: /a matches /a and /a/b.")
    regex: Regex | None = Field(None, description="A regular expression that matches the whole path.")
    methods: tuple[Method, ...] | None = Field(None, description="Methods taken. Default: any the action knows.")
    headers: dict[str, str] = Field({}, description="Fields that must be there with exactly this value.")
    form_fields: dict[str, str] = Field(
        {},
        description="Form fields before the first file that must match, with `*` for any characters. A form that "
        "matches no such route goes to the route of this place without form_fields, or is refused (422).",
    )


class FormFields(Section):
    """What becomes of the form fields around a file that goes upstream by itself."""

    keep: tuple[str, ...] | None = Field(None, description="Names of fields passed on. Default: all.")
    drop: tuple[str, ...] = Field((), description="Names of fields left out.")
    rename: dict[str, str] = Field({}, description="New names, by the client's names.")
    add: dict[str, str] = Field({}, description="Fields added to every request, in place of the client's of that name.")
    send: Literal["form", "query", "headers", "none"] | None = Field(
        None,
        description="Where they go: parts of the form, the query, header fields `X-Form-NAME`, or nowhere. "
        "Default: form for `body: multipart`, query for `body: raw`.",
    )


class Mirror(Section):
    """Tell a share of the requests again, to an upstream or a directory, without the primary feeling it."""

    upstream: str | None = Field(None, description="Name of the upstream that gets them; its answers are dropped.")
    directory: str | None = Field(None, description="Or where bodies are written, each whole or not at all.")
    percent: float = Field(100.0, ge=0, le=100, description="How many of a hundred requests, chosen at random.")
    buffer: Size = Field(4 * _MIB, description="Bytes a mirror may be behind, per request, before it is dropped.")


class Forward(Section):
    """Pipe the request to an upstream and its answer back."""

    upstream: str = Field(description="Name of the upstream.")
    rewrite: UrlPath | None = Field(
        None, description="New path: replaces the exact path or the prefix; for a regex, a template with \\1 groups."
    )
    multipart: Literal["inspect", "opaque", "strict"] = Field(
        "inspect",
        description="Read multipart/form-data along the way and hold the limits; or only carry it; or refuse what "
        "parsers read in different ways, and send a canonical form with a fresh boundary.",
    )
    body: Literal["as_is", "raw", "multipart"] = Field(
        "as_is", description="Unwrap the one file of a form into a raw body, or wrap a raw body into a form."
    )
    file_field: str = Field("file", description="With `body: multipart`, the form field of a wrapped body.")
    filename_header: FieldName | None = Field(
        "X-File-Name", description="With `body: raw`, the header field for the file's name, percent-encoded UTF-8."
    )
    form_fields: FormFields = Field(
        FormFields(), description="What becomes of form fields; with `body: raw` those that stand before the file."
    )
    mirror: Mirror | None = Field(None, description="A second place for a share of the requests.")
    host: Literal["preserve", "upstream"] = Field(
        "preserve", description="Host sent upstream: the client's (port kept), or the endpoint's."
    )


class Split(Section):
    """Make every file of a form an upstream request of its own, and answer with one document of all answers."""

    upstream: str = Field(description="Name of the upstream; files are spread over its endpoints.")
    rewrite: UrlPath | None = Field(
        None, description="New path, as in forward; `{filename}` in it is the file's name, percent-encoded."
    )
    body: FileBody = Field(
        "multipart", description="A form with the one file, or the file's bytes with its Content-Type."
    )
    filename_header: FieldName | None = Field(
        "X-File-Name", description="With `body: raw`, the header field for the file's name, percent-encoded UTF-8."
    )
    form_fields: FormFields = Field(FormFields(), description="The form fields that stand before the file.")
    host: Literal["preserve", "upstream"] = Field(
        "preserve", description="Host sent upstream: the client's (port kept), or the endpoint's."
    )
    max_parallel: int = Field(
        4, ge=1, description="Files whose answers may be awaited at once; the next file waits for a place."
    )
    on_error: Literal["continue", "stop"] = Field(
        "continue", description="After a file fails: go on with the next, or send no more."
    )
    max_response_bytes: Size = Field(
        _MIB,
        description="Bytes of all answers together: they are held until the last, whose status decides 200 or 207.",
    )


class Store(Section):
    """Stream every file of an upload to disk, whole or not at all."""

    directory: str | None = Field(
        None,
        description="Where files go; relative paths are relative to the working directory. Unfinished ones are in "
        "hidden `.HEX.part` directories there; what a killed gateway left of them is removed at the next start.",
    )
    url: S3Url | None = Field(
        None,
        description="Or a bucket and prefix, s3://bucket/prefix; needs the extra `s3`. Credentials come from the "
        "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...).",
    )
    endpoint: str | None = Field(None, description="Of an object store that is not AWS: http(s)://host:port.")
    region: str | None = Field(None, description="Of the bucket.")
    name: Naming = Field(
        "original", description="Name on disk: the client's file name made safe, or a fresh UUID with its extension."
    )
    if_exists: IfExists = Field(
        "rename", description="When the name is taken: store as name-1, answer 409, or replace atomically."
    )


class Files(Section):
    """Stream files of a directory to the client."""

    directory: str | None = Field(
        None, description="What is served. Dot files and whatever a symlink leads outside are not."
    )
    url: S3Url | None = Field(None, description="Or a bucket and prefix, s3://bucket/prefix, as in store.")
    endpoint: str | None = Field(None, description="Of an object store that is not AWS: http(s)://host:port.")
    region: str | None = Field(None, description="Of the bucket.")


class Fetch(Section):
    """Stream an allowed URL to the client: /fetch/https://models.example/a.bin."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="URL prefixes (scheme, host, port, path) that may be fetched. Redirects are held to it too."
    )
    private_networks: Literal["deny", "allow"] = Field(
        "deny", description="Whether addresses that are not public may be connected to, checked at connect time."
    )
    timeouts: UpstreamTimeouts = Field(UpstreamTimeouts(), description="Per-step time limits.")


class Limits(Section):
    """How much a request may carry. The error names the key."""

    max_body: Size = Field(10 * _GIB, description="Bytes of a request body. A disk or a model is behind it.")
    max_parts: int = Field(64, ge=1, description="Parts of a multipart body: each costs CPU beyond its bytes.")
    max_part: Size = Field(10 * _GIB, description="Bytes of one file part.")
    max_field: Size = Field(_MIB, description="Bytes of one form field (a part without a file name).")
    max_held: Size = Field(
        64 * 2.0**10, description="Bytes of form fields held while the file behind them streams, all together."
    )
    max_part_headers: Size = Field(
        16 * 2.0**10, description="Bytes of one part's header fields, and of the preamble before the first part."
    )


class RouteTimeouts(Section):
    """How slow a client may be. Silence is timed, size is not."""

    idle: Seconds = Field(60.0, description="Between two chunks, when the client is the one being waited for.")
    min_rate: Rate = Field(
        1024.0, description="Least bytes per second while a peer is waited for; not for answers of unknown length."
    )
    grace: Seconds = Field(10.0, description="How long a transfer may stay below min_rate.")
    total: Seconds = Field(math.inf, description="Longest time a transfer may take, however fast it is.")


class Route(Section):
    """What matches, which action it gets, and how much it may take. Exactly one action."""

    name: Name = Field(description="The label in metrics and logs.")
    match: Match = Field(description="Which requests it takes.")
    forward: Forward | None = Field(None, description="Action: pipe to an upstream.")
    split: Split | None = Field(None, description="Action: every file its own upstream request.")
    store: Store | None = Field(None, description="Action: upload to disk.")
    files: Files | None = Field(None, description="Action: download from disk.")
    fetch: Fetch | None = Field(None, description="Action: download from a URL.")
    filters: tuple[FilterChoice, ...] = Field(
        (), description="What looks at the files of uploads, in this order; see docs/filters.md."
    )
    limits: Limits = Field(Limits(), description="How much a request may carry.")
    timeouts: RouteTimeouts = Field(RouteTimeouts(), description="How slow a client may be.")

    @property
    def action(self) -> Forward | Split | Store | Files | Fetch:
        """The one action of the route."""
        for action in (self.forward, self.split, self.store, self.files, self.fetch):
            if action is not None:
                return action
        raise ValueError(f"route {self.name!r} has no action")

    @property
    def written_directory(self) -> str | None:
        """The directory it writes files into, None where it writes none."""
        if self.store is not None:
            return self.store.directory
        mirror = self.forward.mirror if self.forward is not None else None
        return mirror.directory if mirror is not None else None

    @property
    def upstream(self) -> str:
        """The upstream its bytes go to, "" where there is none."""
        action = self.forward or self.split
        return action.upstream if action is not None else ""

    @property
    def action_name(self) -> str:
        """The key of its action."""
        return type(self.action).__name__.lower()


ACTIONS: Final = ("forward", "split", "store", "files", "fetch")


class Config(Section):
    """The whole config."""

    listen: ListenAddress = Field(Address("127.0.0.1", 8080), description="Address of the traffic port.")
    tls: Tls | None = Field(None, description="TLS on the traffic port; without it plain HTTP.")
    ops: Ops = Field(Ops(), description="The operations port.")
    trusted_proxies: tuple[NetworkText, ...] = Field(
        (), description="Networks whose X-Forwarded-*, Forwarded, X-Request-Id and traceparent are believed."
    )
    drain_timeout: Seconds = Field(
        30.0, description="How long a stopping gateway lets transfers finish. Keep it under the pod's grace period."
    )
    lanes: Lanes = Field(
        "auto", description="How bytes are moved: the cheapest way both ends allow, or always through the parser."
    )
    upstreams: dict[Name, Upstream] = Field({}, description="Services by name.")
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = Field(description="Routes; order breaks ties.")
