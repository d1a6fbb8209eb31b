"""Parsers of config values: sizes, times, rates, addresses.

`unlimited` and `off` become infinity, so that code compares without a special case: `size > limit` is false.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

from gateway.config.kinds import Parser, or_variable, parse_whole, quote, whole_schema

_NUMBER: Final = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)"
_SIZE: Final = re.compile(_NUMBER + r"\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_TIME: Final = re.compile(_NUMBER + r"\s*(ms|s|m|h)?")
_UNIT_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
#: As many workers as cores.
AUTO_WORKERS: Final = 0
_MAX_WORKERS: Final = 256
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENT: Final = 100
_PERCENTAGE: Final = re.compile(_NUMBER + r"\s*%?")
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")


def parse_size(value: object) -> float:
    """Return a size in bytes; `unlimited` is infinity. Raises ValueError with the accepted forms."""
    if value == "unlimited":
        return math.inf
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, float) and value >= 0:
        return value
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        return float(int(float(found[1]) * _UNIT_BYTES[found[2] or "B"]))
    raise ValueError(f"{quote(value)} is not a size: write bytes (1048576), a unit (512KiB, 10GiB, 1MB) or unlimited")


def parse_seconds(value: object) -> float:
    """Return a time in seconds; `off` is infinity. Raises ValueError with the accepted forms."""
    if value == "off":
        return math.inf
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    if isinstance(value, str) and (found := _TIME.fullmatch(value.strip())):
        seconds = float(found[1]) * _UNIT_SECONDS[found[2] or "s"]
        if seconds > 0:
            return seconds
    raise ValueError(f"{quote(value)} is not a time: write seconds (30), a unit (250ms, 30s, 5m, 1h) or off")


def parse_delay(value: object) -> float:
    """Return a time in seconds that may be 0, but not `off`. Raises ValueError with the accepted forms."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and (found := _TIME.fullmatch(value.strip())) and not float(found[1]):
        return 0.0
    with contextlib.suppress(ValueError):
        seconds = parse_seconds(value)
        if math.isfinite(seconds):
            return seconds
    raise ValueError(f"{quote(value)} is not a delay: write seconds (5), or a unit (250ms, 5s); 0s for none")


def parse_switch(value: object) -> bool:
    """Return whether a switch is on. Raises ValueError with the accepted forms."""
    if value in ("on", "off"):
        return value == "on"
    if isinstance(value, bool):
        return value
    raise ValueError(f"{quote(value)} is not a switch: write on or off")


def parse_rate(value: object) -> float:
    """Return a rate in bytes per second; `off` is 0. Raises ValueError with the accepted forms."""
    if value == "off":
        return 0.0
    text = value.removesuffix("/s") if isinstance(value, str) else value
    try:
        rate = parse_size(text)
    except ValueError:
        rate = math.inf
    if math.isinf(rate):
        raise ValueError(f"{quote(value)} is not a rate: write a size per second (1KiB/s, 5MB/s) or off")
    return rate


def parse_percent(value: object) -> float:
    """Return a percentage as a share of 1; numbers without a sign are percent as well. Raises ValueError."""
    found = _PERCENTAGE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if found and float(found[1]) <= _PERCENT:
        return float(found[1]) / _PERCENT
    raise ValueError(f"{quote(value)} is not a percentage: write a number from 0 to 100, for example 20%")


class Address(NamedTuple):
    """The address a listener binds to: a host without brackets, and a port (0: the system chooses one)."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port as in a URL, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Parse HOST:PORT, :PORT (all IPv4 addresses) or [IPV6]:PORT. Raises ValueError."""
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        if colon and port.isascii() and port.isdigit() and int(port) <= 65535:  # noqa: PLR2004 (the highest port)
            return Address(host or "0.0.0.0", int(port))
    raise ValueError(f"{quote(value)} is not an address: write host:port, for example 127.0.0.1:8080")


class Endpoint(NamedTuple):
    """One address of an upstream. Its text is the label `endpoint` of metrics."""

    scheme: str
    host: str
    port: int

    @functools.lru_cache(maxsize=1024)  # noqa: B019 (endpoints are plain values, and few)
    def __str__(self) -> str:
        """Return the URL without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    @functools.lru_cache(maxsize=1024)  # noqa: B019 (as above)
    def authority(self) -> str:
        """The value of a Host header: the port is left out if it is the scheme's default (RFC 9110 section 4.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS: Final = {"http": 80, "https": 443}


def parse_endpoint(value: object) -> Endpoint:
    """Parse http(s)://host[:port]. Raises ValueError, also for a URL with a path: `rewrite` sets the path."""
    if isinstance(value, str):
        try:
            url = urlsplit(value)
            port = url.port
        except ValueError:
            url, port = urlsplit(""), None
        if "@" in url.netloc:
            raise ValueError("an endpoint has no user name and no password: remove them")
        if url.scheme in _PORTS and url.hostname and port != 0 and not (url.query or url.fragment):
            if url.path not in ("", "/"):
                raise ValueError(f"{quote(value)} has a path: remove it and set the path with the route's rewrite")
            if ":" in url.hostname or _HOST.fullmatch(url.hostname):
                return Endpoint(url.scheme, url.hostname, port or _PORTS[url.scheme])
    raise ValueError(f"{quote(value)} is not an endpoint: write http://host:port or https://host:port")


def show_size(size_bytes: float) -> str:
    """Return a size for messages: in bytes and in the largest unit, for example `2147483648 bytes (2 GiB)`."""
    if math.isinf(size_bytes):
        return "unlimited"
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scaled = size_bytes / _UNIT_BYTES[unit]
        if scaled >= 1:
            return f"{int(size_bytes)} bytes ({scaled:.4g} {unit})"
    return f"{int(size_bytes)} bytes"


def parse_worker_count(value: object) -> int:
    """Return a number of workers; `auto` is `AUTO_WORKERS`. Raises ValueError with the accepted forms."""
    if value == "auto":
        return AUTO_WORKERS
    with contextlib.suppress(ValueError):
        count = parse_whole(value)
        if 0 < count <= _MAX_WORKERS:
            return count
    raise ValueError(f"{quote(value)} is not a number of workers: write 1 to {_MAX_WORKERS}, or auto")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that is shown in no document, log or traceback."""

    _text: str

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        """Return nothing of it."""
        return f"Secret({_HIDDEN!r})"


_HIDDEN: Final = "*" * 10


def _parse_secret(value: object) -> Secret:
    if not isinstance(value, str):
        raise ValueError("the value is not a string: put it in quotes")
    return Secret(value)


def _text_schema(description: str, *examples: str | int, **bounds: float) -> dict[str, Any]:
    """Return the JSON Schema of any text, which only the parser checks, and of numbers within `bounds`."""
    kinds = [{"type": "string"}, {"type": "number", **bounds}]
    return {"anyOf": kinds, "description": description, "examples": list(examples)}


Size = Annotated[
    float,
    Parser(
        parse_size,
        _text_schema(
            "A size: bytes, or with a unit, or unlimited.", "512KiB", "10GiB", "unlimited", 1048576, minimum=0
        ),
        show=lambda value: "unlimited" if math.isinf(value) else value,
    ),
]
Seconds = Annotated[
    float,
    Parser(
        parse_seconds,
        _text_schema("A time: seconds, or with a unit, or off.", "250ms", "30s", "5m", "off", exclusiveMinimum=0),
        show=lambda value: "off" if math.isinf(value) else value,
    ),
]
Delay = Annotated[
    float,
    Parser(parse_delay, _text_schema("A time that may be 0: seconds, or with a unit.", "0s", "250ms", "5s", minimum=0)),
]
Switch = Annotated[
    bool,
    Parser(
        parse_switch,
        or_variable({"enum": ["on", "off", True, False], "description": "on or off"}),
        show=lambda value: "on" if value else "off",
    ),
]
WorkerCount = Annotated[
    int,
    Parser(
        parse_worker_count,
        {"anyOf": [whole_schema(ge=1, le=_MAX_WORKERS), {"enum": ["auto"]}], "examples": [2]},
        show=lambda value: "auto" if value == AUTO_WORKERS else value,
    ),
]
Rate = Annotated[
    float, Parser(parse_rate, _text_schema("A rate: a size per second, or off.", "1KiB/s", "off", minimum=0))
]
Percent = Annotated[
    float,
    Parser(
        parse_percent,
        _text_schema("A percentage.", "20%", 20, minimum=0, maximum=_PERCENT),
        show=lambda value: f"{value * _PERCENT:g}%",
    ),
]
SecretText = Annotated[
    Secret,
    Parser(_parse_secret, {"type": "string", "format": "password", "writeOnly": True}, show=lambda value: _HIDDEN),
]
ListenAddress = Annotated[
    Address,
    Parser(
        parse_address,
        {"type": "string", "description": "host:port", "examples": ["127.0.0.1:8080"]},
        show=str,
    ),
]
EndpointUrl = Annotated[
    Endpoint,
    Parser(
        parse_endpoint,
        {"type": "string", "description": "http(s)://host:port", "examples": ["http://127.0.0.1:5000"]},
        show=str,
    ),
]
