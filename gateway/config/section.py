"""The base class of config sections, and the types of names, paths, hosts and networks in them."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: IPv4 addresses as a socket bound to `[::]` sees them.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Section(BaseModel):
    """A mapping of the config: immutable; an unknown key is an error."""

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
        raise ValueError(f"{value!r} is not an HTTP method: write a name like GET or POST")
    return value.upper()


def _parse_host(value: str) -> str:
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError(f"{value!r} is not a host: write a name without port (asr.example) or *.asr.example")
    return value.lower()


def _parse_network(value: object) -> Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        network = ipaddress.ip_network(str(value))
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            # Peers are compared as IPv4, see `gateway.http.client.peer_address`.
            return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
        return network
    except ValueError as exc:
        raise ValueError(f"{value!r} is not a network: write an address or CIDR like 10.0.0.0/8 ({exc})") from exc


def _parse_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
        raise ValueError(f"{value!r} is not a name: write up to 63 letters, digits, dots, dashes or underscores")
    return value


def _parse_header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not a header name: write a name like X-File-Name")
    return value


def _parse_s3_url(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?", value):
        raise ValueError(f"{value!r} is not a bucket URL: write s3://bucket/prefix")
    return value


S3Url = Annotated[str, AfterValidator(_parse_s3_url)]
HeaderName = Annotated[str, AfterValidator(_parse_header_name)]
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
Method = Annotated[str, AfterValidator(_parse_method)]
Host = Annotated[str, AfterValidator(_parse_host)]
