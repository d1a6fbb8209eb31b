"""The keys of the config, their types, defaults and reasons. Nothing here looks at two keys at once: `check` does.

Each field's description is the reference text: docs/configuration.md is held to it by a test.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from gateway.config.values import Address, EndpointUrl, ListenAddress, Rate, Seconds, Size

_MIB, _GIB = float(2**20), float(2**30)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Section(BaseModel):
    """A mapping of the config: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


def _parse_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} does not begin with a slash: write /{value}")
    return value


def _parse_regex(value: object) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    try:
        return re.compile(str(value))
    except re.error as exc:
        raise ValueError(f"{value!r} is not a regular expression: {exc}") from exc


def _parse_method(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not an HTTP method: write a word like GET or POST")
    return value.upper()


def _parse_host(value: str) -> str:
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError(f"{value!r} is not a host: write a name without port (asr.example) or *.asr.example")
    return value.lower()


def _parse_network(value: object) -> Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as exc:
        raise ValueError(f"{value!r} is not a network: write an address or CIDR like 10.0.0.0/8 ({exc})") from exc


def _parse_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
        raise ValueError(f"{value!r} is not a name: write up to 63 letters, digits, dots, dashes or underscores")
    return value


def _parse_field_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not a field name: write a word like X-File-Name")
    return value


def _parse_positive(value: float) -> float:
    if not value:
        raise ValueError("nothing would ever flow: write a rate like 5MB/s")
    return value


FieldName = Annotated[str, AfterValidator(_parse_field_name)]
UrlPath = Annotated[str, AfterValidator(_parse_path)]
Name = Annotated[str, AfterValidator(_parse_name)]
NetworkText = Annotated[
    Network, BeforeValidator(_parse_network), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
Regex = Annotated[
    re.Pattern[str],
    BeforeValidator(_parse_regex),
    PlainSerializer(lambda regex: regex.pattern),
    WithJsonSchema({"type": "string", "format": "regex"}),
]


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
    policy: Literal["round_robin", "least_requests", "random_two"] = Field(
        "round_robin", description="Which endpoint gets the next request."
    )
    timeouts: UpstreamTimeouts = Field(UpstreamTimeouts(), description="Per-step time limits.")
    health: Health | None = Field(None, description="Active health checks; without it every endpoint counts as up.")
    max_in_flight: Size = Field(
        math.inf, description="Exchanges at once; further ones wait. Set it to what the model server can take."
    )
    max_queued: int = Field(100, ge=0, description="How many may wait for a slot; further ones get 503 at once.")
    queue_timeout: Seconds = Field(10.0, description="How long one may wait for a slot before its 503.")


class Match(Section):
    """Which requests a route takes: all given conditions must hold."""

    host: Annotated[str, AfterValidator(_parse_host)] | None = Field(
        None, description="Host without port; `*.example` matches any subdomain. Default: any host."
    )
    path: UrlPath | None = Field(None, description="The whole path, exactly.")
    prefix: UrlPath | None = Field(None, description="A path prefix, by whole segments: /a matches /a and /a/b.")
    regex: Regex | None = Field(None, description="A regular expression that matches the whole path.")
    methods: tuple[Annotated[str, AfterValidator(_parse_method)], ...] | None = Field(
        None, description="Methods taken. Default: any the action knows."
    )
    headers: dict[str, str] = Field({}, description="Fields that must be there with exactly this value.")
    field: dict[str, str] = Field(
        {},
        description="Form fields before the first file that must match, with `*` for any characters. A form that "
        "matches no such route goes to the route of this place without field, or is refused (422).",
    )


class Forward(Section):
    """Pipe the request to an upstream and its answer back."""

    upstream: str = Field(description="Name of the upstream.")
    rewrite: UrlPath | None = Field(
        None, description="New path: replaces the exact path or the prefix; for a regex, a template with \\1 groups."
    )
    multipart: Literal["inspect", "opaque"] = Field(
        "inspect", description="Read multipart/form-data along the way and hold the limits, or only carry it."
    )
    host: Literal["preserve", "upstream"] = Field(
        "preserve", description="Host sent upstream: the client's (port kept), or the endpoint's."
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


class Split(Section):
    """Make every file of a form an upstream request of its own, and answer with one document of all answers."""

    upstream: str = Field(description="Name of the upstream; files are spread over its endpoints.")
    rewrite: UrlPath | None = Field(
        None, description="New path, as in forward; `{filename}` in it is the file's name, percent-encoded."
    )
    body: Literal["multipart", "raw"] = Field(
        "multipart", description="A form with the one file, or the file's bytes with its Content-Type."
    )
    file_name: FieldName | None = Field(
        "X-File-Name", description="With `body: raw`, the header field for the file's name, percent-encoded UTF-8."
    )
    fields: FormFields = Field(FormFields(), description="The form fields that stand before the file.")
    host: Literal["preserve", "upstream"] = Field(
        "preserve", description="Host sent upstream: the client's (port kept), or the endpoint's."
    )
    max_parallel: int = Field(
        4, ge=1, description="Files whose answers may be awaited at once; the next file waits for a place."
    )
    on_error: Literal["continue", "stop"] = Field(
        "continue", description="After a file fails: go on with the next, or send no more."
    )
    max_answers: Size = Field(
        _MIB,
        description="Bytes of all answers together: they are held until the last, whose status decides 200 or 207.",
    )


class Store(Section):
    """Stream every file of an upload to disk, whole or not at all."""

    directory: str = Field(description="Where files go. Relative paths are relative to the working directory.")
    name: Literal["original", "uuid"] = Field(
        "original", description="Name on disk: the client's file name made safe, or a fresh UUID with its extension."
    )
    if_exists: Literal["rename", "reject", "replace"] = Field(
        "rename", description="When the name is taken: store as name-1, answer 409, or replace atomically."
    )


class Files(Section):
    """Stream files of a directory to the client."""

    directory: str = Field(description="What is served. Dot files and whatever a symlink leads outside are not.")


class Fetch(Section):
    """Stream an allowed URL to the client: /fetch/https://models.example/a.bin."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="URL prefixes (scheme, host, port, path) that may be fetched. Redirects are held to it too."
    )
    private_networks: Literal["deny", "allow"] = Field(
        "deny", description="Whether addresses that are not public may be connected to, checked at connect time."
    )
    timeouts: UpstreamTimeouts = Field(UpstreamTimeouts(), description="Per-step time limits.")


class Digest(Section):
    """Hash every file, tell the digest, and hold files to what their sender says of them (RFC 9530)."""

    algorithm: Literal["sha256", "sha512", "sha1", "md5", "crc32c", "blake2b"] = Field(
        "sha256", description="Told in the log, in documents, and as `X-Upload-Digest` on forwarded answers."
    )


class Sniff(Section):
    """Take only files whose first bytes are of an allowed type, whatever they are called."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Media types, with `*` for any characters: image/*, application/pdf."
    )


class Throttle(Section):
    """Let files flow at a rate."""

    rate: Annotated[Rate, AfterValidator(_parse_positive)] = Field(description="Bytes per second.")
    per: Literal["route", "client"] = Field("route", description="Who shares it: everybody, or each client address.")


class Compress(Section):
    """Compress files on their way."""

    coding: Literal["gzip", "deflate"] = Field("gzip", description="How.")
    level: int = Field(6, ge=1, le=9, description="From fast (1) to small (9).")


class Decompress(Section):
    """Decompress files on their way; gzip and zlib are told apart by their first bytes."""

    max_bytes: Size = Field(10 * _GIB, description="Of one file, decompressed: bombs end here.")


class FilterChoice(Section):
    """One filter: its name with its options, or its name alone. Names not known here are those of plug-ins."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: Digest | None = Field(None, description="Hash, and check what senders say.")
    sniff: Sniff | None = Field(None, description="Allow types by magic bytes; needs the extra `sniff`.")
    throttle: Throttle | None = Field(None, description="Hold a rate.")
    compress: Compress | None = Field(None, description="Compress; forms are made anew.")
    decompress: Decompress | None = Field(None, description="Decompress; forms are made anew.")

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        """Take a name alone for a name with no options."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @model_validator(mode="after")
    def _is_one(self) -> FilterChoice:
        if len(self.model_fields_set) != 1:
            raise ValueError("a filter is one name with its options: begin a new `- item` for each")
        return self

    @property
    def name(self) -> str:
        """Its name."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> Any:
        """Its options: a section, or what stands there for a plug-in."""
        return getattr(self, self.name)


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
    lanes: Literal["auto", "copy"] = Field(
        "auto", description="How bytes are moved: the cheapest way both ends allow, or always through the parser."
    )
    upstreams: dict[Name, Upstream] = Field({}, description="Services by name.")
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = Field(description="Routes; order breaks ties.")
